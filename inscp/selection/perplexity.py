"""Scoring of records under a model: the summed negative log-likelihood of their text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from inscp.data.tagging import ConversationTagger, InsCPTagger, PlainTagger, Tag
from inscp.data.tokenization import tokenize
from inscp.errors import UserError
from inscp.model.likelihood import batches_by_length, summed_nlls
from inscp.model.loss import NextTokenLoss
from inscp.records import IGNORED, Record, Score, TaggedText, TemplateIds, TextSpan, TokenSequence

Conditioning = Literal["text", "template", "response"]
_NEVER_SPLIT = 1 << 40
OnUnusable = Callable[[str, str], None]
OnBatch = Callable[[float, int], None]


@dataclass(frozen=True)
class Scoring:
    """What is scored of a record.

    Args:
        given: what precedes the text. `text`: only the token that begins a document in pre-training (the paper's
            formula). `template`: the model's own template with an empty user turn, where InsCP trains it. `response`:
            its prompt, in the template; only answers are scored.
        window: tokens that the model sees at once; a longer record is scored in several windows.
        overlap: tokens that a window repeats from the previous one, as context that is not scored again.
    """

    given: Conditioning = "text"
    window: int = 2048
    overlap: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.overlap < self.window:
            raise UserError("--overlap", f"{self.overlap} of a window of {self.window}", "Give 1 to window - 1.")

    def tag(self, tokenizer: PreTrainedTokenizerBase) -> Tag:
        """The function that makes documents of a record, in which only the scored text is a target."""
        taggers = {"text": PlainTagger(), "template": InsCPTagger(), "response": ConversationTagger()}
        tag = taggers[self.given].bind(tokenizer)
        return lambda record: [_only_text(document) for document in tag(record)]


def _only_text(document: TaggedText) -> TaggedText:
    parts = [TemplateIds(part.ids, False) if isinstance(part, TemplateIds) else part for part in document.parts]
    *parts, end = (part for part in parts if isinstance(part, TextSpan) or part.ids)
    # A model without a begin-of-sequence token has seen every document after the end of another one.
    return TaggedText(document.source, (end, *parts) if isinstance(parts[0], TextSpan) else tuple(parts))


def windows(sequence: TokenSequence, window: int, overlap: int) -> Iterator[TokenSequence]:
    """The sequence in windows of at most `window` tokens, each target in exactly one of them."""
    length, scored = len(sequence.input_ids), 0
    while True:
        begin = max(0, scored - overlap)
        end = min(length, begin + window)
        labels = sequence.labels[begin:end].copy()
        labels[: scored - begin] = IGNORED
        yield TokenSequence(sequence.source, sequence.input_ids[begin:end], labels)
        if end == length:
            return
        scored = end


class Scorer:
    """Scores records under a model.

    Args:
        loss: the model, in evaluation mode on its device.
        tokenizer: the model's.
        scoring: what is scored.
        batch_tokens: maximum tokens per forward pass; a longer window has its own pass.
        is_sharded: whether the model is spread over the ranks, which must then compute together (see `finish`).
    """

    def __init__(
        self, loss: NextTokenLoss, tokenizer: PreTrainedTokenizerBase, scoring: Scoring, batch_tokens: int,
        is_sharded: bool = False,
    ) -> None:  # fmt: skip
        self._loss, self._tokenizer, self._scoring, self._is_sharded = loss, tokenizer, scoring, is_sharded
        self._batch_tokens = batch_tokens
        self._tag = scoring.tag(tokenizer)

    def score(self, records: Iterable[Record], on_unusable: OnUnusable, on_batch: OnBatch) -> list[Score]:
        """The scores of records, in order.

        Args:
            records: any number; those of similar length share a forward pass.
            on_unusable: called with each record that has no score, and the reason.
            on_batch: called after a forward pass with its fraction of the work and the number of tokens it scored.
        """
        documents = []
        for record in records:
            try:
                found = self._tag(record)
            except UserError as error:
                on_unusable(record.source, error.what)
                continue
            documents += found
        sizes: dict[str, int] = {}
        for document in documents:
            size = sum(len(p.text.encode()) for p in document.parts if isinstance(p, TextSpan) and p.is_target)
            sizes[document.source] = sizes.get(document.source, 0) + size
        reported: set[str] = set()

        def leave_out(source: str, why: str) -> None:
            reported.add(source)
            on_unusable(source, why)

        sequences = tokenize(documents, self._tokenizer, _NEVER_SPLIT, leave_out)
        cut = (windows(whole, self._scoring.window, self._scoring.overlap) for whole in sequences)
        pieces = [piece for pieces in cut for piece in pieces if piece.n_targets]
        totals = {source: [0, 0.0] for source in sizes}
        whole_length = sum(len(piece.input_ids) for piece in pieces)
        if not pieces:
            on_batch(1.0, 0)
        for batch in batches_by_length(pieces, self._batch_tokens):
            for piece, nll in zip(batch, self._nlls(batch), strict=True):
                totals[piece.source][0] += piece.n_targets
                totals[piece.source][1] += float(nll)
            n_tokens = sum(len(piece.input_ids) for piece in batch)
            on_batch(n_tokens / whole_length, n_tokens)
        for source, (n, _) in totals.items():
            if not n and source not in reported:
                on_unusable(source, "it contains no text tokens")
        return [Score(source, int(n), sizes[source], nll) for source, (n, nll) in totals.items() if n]

    def finish(self) -> None:
        """Take part in the forward passes of the other ranks until none has any left (sharded models)."""
        while self._is_sharded and self._any_computes(False):
            summed_nlls(self._loss, [TokenSequence("", *(np.zeros(2, dtype=np.int32),) * 2)])

    def _nlls(self, pieces: Sequence[TokenSequence]) -> np.ndarray:
        if self._is_sharded:
            self._any_computes(True)
        return summed_nlls(self._loss, pieces)

    def _any_computes(self, this_one: bool) -> bool:
        answer = torch.tensor(int(this_one), device=next(self._loss.parameters()).device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer)
