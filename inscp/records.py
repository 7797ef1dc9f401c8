"""The types shared by all packages: one frozen dataclass per stage of the data path.

Record -> TaggedText -> TokenSequence -> PackedBatch        (training)
Record -> Score, Candidate                                  (selection)
Prompt -> Generation                                        (evaluation)
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from inscp.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORED = -100
"""The label of a position without loss: the `ignore_index` of torch's cross-entropy."""

LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")
"""Matches BCP 47 tags, and a few near misses: `zh_TW` too."""


def require_language_tag(where: str, tag: str) -> None:
    """
    Raises:
        UserError: `tag` cannot be a BCP 47 tag.
    """
    if not LANGUAGE_TAG.fullmatch(tag):
        raise UserError(where, f"{tag} is not a BCP 47 tag", "Give one, such as fi or zh-TW.")


Role = Literal["system", "user", "assistant", "document"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's text. A text without a speaker (an article) has the role `document`."""

    role: Role
    text: str


Prompt = tuple[Turn, ...]
"""A model's input: a conversation that ends with a user turn, or one `document` to continue."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a source, as read.

    Attributes:
        source: file and line (`pairs.jsonl:17`), for messages and for `inspect`.
        turns: a conversation, or one `document` turn.
    """

    source: str
    turns: tuple[Turn, ...]

    @property
    def n_characters(self) -> int:
        return sum(len(turn.text) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class TemplateIds:
    """Token ids that the chat template puts around the text."""

    ids: tuple[int, ...]
    is_target: bool


@dataclass(frozen=True, slots=True)
class LeftContext:
    """Text put before another for tokenisation, so that the latter gets the tokens that it has in the template.

    Attributes:
        text: a line break, a space, both, or nothing.
        n_tokens: number of tokens of the context itself; a space without one merges into the text's first token.
    """

    text: str = ""
    n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text from the data, tokenised alone between its contexts; special tokens written in it are plain text.

    Attributes:
        right_context: the template's line breaks after it, tokenised with it because its last token may include them.
    """

    text: str
    is_target: bool
    left_context: LeftContext = LeftContext()
    right_context: str = ""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """One training document: template ids and text, in order.

    Attributes:
        source: the record's source: file and line.
        parts: in order; a document that may be split has exactly one `TextSpan`.
    """

    source: str
    parts: tuple[TemplateIds | TextSpan, ...]

    @property
    def n_characters(self) -> int:
        return sum(len(part.text) for part in self.parts if isinstance(part, TextSpan))

    @property
    def text(self) -> str:
        """The text as read, without the template."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextSpan))


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One document, or one part of a long one, ready to be packed.

    Attributes:
        source: the record's source: file and line.
        input_ids: int32 [T].
        labels: int32 [T]; `input_ids` where the token is a training target, else `IGNORED`. Not shifted.
        part, parts: this is part number `part` (from 1) of the document's `parts`.
    """

    source: str
    input_ids: np.ndarray
    labels: np.ndarray
    part: int = 1
    parts: int = 1

    @property
    def n_targets(self) -> int:
        """Number of targets; the first token has no context to be predicted from."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch of B packed rows of L tokens, with the documents of a row kept apart.

    Attributes:
        input_ids: int64 [B, L].
        targets: int64 [B, L]; the token that follows within the same document, else `IGNORED`.
        position_ids: int64 [B, L]; restarts at 0 at every document, which is what isolates attention.
        lengths: of the documents, row after row, with the padding of a row as one more; they sum to B x L.
        step_targets: number of targets of the whole optimizer step, over micro-batches and ranks: the
            denominator that gives every token the same weight.
        step_tokens: number of tokens of the step that are not padding.
        replayed_rows: number of replayed rows, which come last.
        replayed_targets: number of targets in them.
        target_positions: int64 [N]; those of the B x L positions that have a target. Computed on the CPU when the
            batch is made, because nonzero() would synchronise the GPU.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    step_targets: int
    step_tokens: int
    replayed_rows: int = 0
    replayed_targets: int = 0
    target_positions: torch.Tensor = None  # type: ignore[assignment]  # by default from `targets`

    def __post_init__(self) -> None:
        if self.target_positions is None:
            object.__setattr__(self, "target_positions", (self.targets.flatten() != IGNORED).nonzero()[:, 0])

    @property
    def replayed(self) -> PackedBatch:
        """The replayed rows alone."""
        row = len(self.input_ids) - self.replayed_rows
        begin = row * self.input_ids.shape[1]
        ends = itertools.accumulate(self.lengths)
        return replace(
            self,
            input_ids=self.input_ids[row:],
            targets=self.targets[row:],
            position_ids=self.position_ids[row:],
            lengths=tuple(n for n, end in zip(self.lengths, ends, strict=True) if end > begin),
            target_positions=self.target_positions[len(self.target_positions) - self.replayed_targets :] - begin,
        )

    def to(self, device: torch.device, non_blocking: bool = True) -> PackedBatch:
        """The same batch on `device` (called by Lightning without the second argument)."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory (called by the data loader)."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            targets=change(self.targets),
            position_ids=change(self.position_ids),
            target_positions=change(self.target_positions),
        )


def _perplexity(nll: float, n_tokens: int) -> float:
    return math.exp(min(nll / n_tokens, 700.0))  # exp() of more overflows


@dataclass(frozen=True, slots=True)
class Score:
    """The likelihood of a record under a model.

    Attributes:
        id: the record's `source`: file and line.
        n_tokens: number of scored tokens.
        n_bytes: UTF-8 bytes of the scored text.
        nll: summed negative log-likelihood of the scored tokens, in nats.
    """

    id: str
    n_tokens: int
    n_bytes: int
    nll: float

    @property
    def perplexity(self) -> float:
        return _perplexity(self.nll, self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable across tokenizers."""
        return self.nll / math.log(2) / self.n_bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that may be selected.

    Attributes:
        record: as read, or as changed by a filter.
        source: name of its source.
        n_tokens: tokens of all its texts.
        perplexity: of its scored text; None without scores.
    """

    record: Record
    source: str
    n_tokens: int
    perplexity: float | None = None

    @property
    def n_characters(self) -> int:
        return self.record.n_characters

    @property
    def text(self) -> str:
        return "\n\n".join(turn.text for turn in self.record.turns)


@dataclass(frozen=True, slots=True)
class Generation:
    """A model's response to one prompt.

    Attributes:
        prompt: the prompt's last turn.
        response: the generated text without special tokens.
        n_tokens: number of generated tokens, including the end-of-turn token.
        ended: whether the model ended its turn itself.
    """

    prompt: str
    response: str
    n_tokens: int
    ended: bool
