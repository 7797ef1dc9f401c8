"""The types that all packages share: one frozen dataclass for each stage of the data path.

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
"""A BCP 47 tag, or nearly: `zh_TW` too."""


def require_language_tag(where: str, tag: str) -> None:
    """
    Raises:
        UserError: it cannot be a BCP 47 tag.
    """
    if not LANGUAGE_TAG.fullmatch(tag):
        raise UserError(where, f"{tag} is not a BCP 47 tag", "Give one, such as fi or zh-TW.")


Role = Literal["system", "user", "assistant", "document"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says. A text that nobody speaks (an article) has the role `document`."""

    role: Role
    text: str


Prompt = tuple[Turn, ...]
"""What a model is asked: a conversation that ends with a user's turn, or one `document` to go on with."""


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
    """What a text is tokenised behind, so that it gets the tokens that it has in its place in the template.

    Attributes:
        text: a line break, a space, both, or nothing.
        n_tokens: how many tokens belong to the context itself; a space that has none joins the text's first token.
    """

    text: str = ""
    n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text from the data, tokenised by itself in its contexts; special tokens written in it are plain text.

    Attributes:
        right_context: the template's line breaks behind it, which are tokenised with it: its last token may hold them.
    """

    text: str
    is_target: bool
    left_context: LeftContext = LeftContext()
    right_context: str = ""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """One training document: template ids and text in their order.

    Attributes:
        source: where the record came from.
        parts: in order; a document that may be split has exactly one `TextSpan`.
    """

    source: str
    parts: tuple[TemplateIds | TextSpan, ...]

    @property
    def n_characters(self) -> int:
        return sum(len(part.text) for part in self.parts if isinstance(part, TextSpan))

    @property
    def text(self) -> str:
        """The text as read, the template left out."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextSpan))


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One document, or one part of a long one, ready to be packed.

    Attributes:
        source: where the record came from.
        input_ids: int32 [T].
        labels: int32 [T]; `input_ids` where the token is a training target, else `IGNORED`. Not shifted.
        part, parts: this is part `part` (from 1) of `parts` of the document.
    """

    source: str
    input_ids: np.ndarray
    labels: np.ndarray
    part: int = 1
    parts: int = 1

    @property
    def n_targets(self) -> int:
        """The first token has nothing before it to be predicted from."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch of B rows of L tokens in which documents are kept apart.

    Attributes:
        input_ids: int64 [B, L].
        targets: int64 [B, L]; the token that follows within the same document, else `IGNORED`.
        position_ids: int64 [B, L]; restarts at 0 at every document, which is what isolates attention.
        lengths: of the documents, row after row, padding included as one a row; their sum is B x L.
        step_targets: how many targets the whole optimizer step has, over micro-batches and ranks: the
            denominator that makes every token weigh the same.
        step_tokens: how many of its tokens are not padding.
        replayed_rows: how many of the rows are replayed, which are the last ones.
        replayed_targets: how many of the targets are theirs.
        target_positions: int64 [N]; those of the B x L positions that have a target. They are computed on the CPU,
            when the batch is made, because nonzero() would synchronise the GPU.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    step_targets: int
    step_tokens: int
    replayed_rows: int = 0
    replayed_targets: int = 0
    target_positions: torch.Tensor = None  # type: ignore[assignment]  # by default those of the targets

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
        """The same batch on `device` (what Lightning calls, without the second argument)."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory (what the data loader calls)."""
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
    return math.exp(min(nll / n_tokens, 700.0))  # the exponential of more overflows


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a record is under a model.

    Attributes:
        id: the record's `source`: file and line.
        n_tokens: scored tokens.
        n_bytes: of the scored text in UTF-8.
        nll: their summed negative log-likelihood, in nats.
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
        """Comparable between tokenizers."""
        return self.nll / math.log(2) / self.n_bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that may be chosen.

    Attributes:
        record: as read, or as a filter has changed it.
        source: the name of the source that it was read from.
        n_tokens: of all its texts.
        perplexity: of what was scored of it; None without scores.
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
        prompt: its last turn.
        response: what was generated, special tokens left out.
        n_tokens: generated tokens, the end-of-turn token included.
        ended: whether the model ended its turn by itself.
    """

    prompt: str
    response: str
    n_tokens: int
    ended: bool
