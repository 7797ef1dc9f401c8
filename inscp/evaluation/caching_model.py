"""The model under test, as tasks see it: its answers and likelihoods are kept on disk, and computed once only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from inscp.errors import require_some
from inscp.evaluation.answers import without_reasoning
from inscp.evaluation.journal import Journal, short_digest
from inscp.records import Generation, Prompt, TokenSequence

StartProgress = Callable[[str, int], Callable[[], None]]
"""Called with what is done and how many items there are; returns what is to be called after each item."""


class Backend(Protocol):
    """What computes: `LocalModel`, or a server."""

    spec: str

    @property
    def made_by(self) -> Mapping[str, Any]: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def too_long(self, prompt: Prompt, max_new_tokens: int) -> str | None: ...

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[tuple[int, Generation]]: ...

    def nlls(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[int, float]]: ...


class CachingModel:
    """A model whose answers are cached on disk.

    Args:
        backend: what computes.
        folder: the answers go into `answers.jsonl` in it.
        start_progress: reports progress.

    Raises:
        UserError: the folder holds answers of something else.
    """

    def __init__(self, backend: Backend, folder: Path, start_progress: StartProgress) -> None:
        self.backend, self.folder, self.start_progress = backend, folder, start_progress
        self._journal = Journal(folder / "answers.jsonl", backend.made_by)

    @property
    def spec(self) -> str:
        return self.backend.spec

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.backend.tokenizer

    def generate(self, what: str, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Generation]:
        """The response to each prompt, without the reasoning that may stand before it in think tags.

        Args:
            what: is asked, for people.
            prompts: conversations that end with a user's turn, or texts to go on with.
            max_new_tokens: responses are cut there.

        Raises:
            UserError: they are to be shorter than one token, or the model cannot be asked.
        """
        require_some(max_new_tokens, "max_new_tokens")

        def answer(places: list[int]) -> Iterator[tuple[int, Any]]:
            for index, response in self.backend.generate([prompts[place] for place in places], max_new_tokens):
                yield places[index], [response.response, response.n_tokens, response.ended]

        requests = [[max_new_tokens, [[turn.role, turn.text] for turn in prompt]] for prompt in prompts]
        answers = self._journal.get_or_compute("generate", requests, answer, self.start_progress(what, len(prompts)))
        found = [Generation(prompt[-1].text, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return without_reasoning(found)

    def nlls(self, what: str, sequences: Sequence[TokenSequence]) -> np.ndarray:
        """Summed negative log-likelihood of each sequence's targets in nats, float64 [N].

        Args:
            what: is scored, for people.
            sequences: each with a target, and none longer than the model can see.
        """

        def answer(places: list[int]) -> Iterator[tuple[int, Any]]:
            for index, nll in self.backend.nlls([sequences[place] for place in places]):
                yield places[index], nll

        requests = [[sequence.input_ids.tolist(), sequence.labels.tolist()] for sequence in sequences]
        return np.array(
            self._journal.get_or_compute("nll", requests, answer, self.start_progress(what, len(sequences)))
        )

    def with_backend(self, backend: Backend, name: str) -> "CachingModel":
        """Another model, for comparison, with a journal of its own."""
        return CachingModel(backend, self.folder / f"{name}-{short_digest(backend.made_by)}", self.start_progress)
