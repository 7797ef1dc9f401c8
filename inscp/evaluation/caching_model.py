"""The model under test, as tasks see it: answers and likelihoods are computed once and cached on disk."""

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
"""Called with a description and the number of items; returns a function to call after each item."""


class Backend(Protocol):
    """Computes answers and likelihoods: `LocalModel`, or a server."""

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
        backend: computes the answers.
        folder: folder of the cache file, `answers.jsonl`.
        start_progress: reports progress.

        Raises:
            UserError: the folder holds answers of another model or other settings.
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
        """The response to each prompt, without any reasoning in think tags before it.

        Args:
            what: description for the progress display.
            prompts: conversations that end with a user turn, or texts to continue.
            max_new_tokens: maximum tokens per response; longer ones are cut off.

        Raises:
            UserError: `max_new_tokens` is below 1, or the model cannot be prompted.
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
            what: description for the progress display.
            sequences: each with a target, and none longer than the context length.
        """

        def answer(places: list[int]) -> Iterator[tuple[int, Any]]:
            for index, nll in self.backend.nlls([sequences[place] for place in places]):
                yield places[index], nll

        requests = [[sequence.input_ids.tolist(), sequence.labels.tolist()] for sequence in sequences]
        return np.array(
            self._journal.get_or_compute("nll", requests, answer, self.start_progress(what, len(sequences)))
        )

    def with_backend(self, backend: Backend, name: str) -> "CachingModel":
        """Another model, for comparison, with its own journal."""
        return CachingModel(backend, self.folder / f"{name}-{short_digest(backend.made_by)}", self.start_progress)
