"""Tagged text becomes token sequences; a long document becomes several tagged chunks, and none of its text is lost.

Texts are tokenised in batches, each by itself, as plain text (`special_tokens`): `<|eot_id|>` in a corpus is not a
control token. A text longer than a row, or than a document may be, is split at sentence ends (`splitting`), and every
chunk is tagged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from inscp.data.batching import batches
from inscp.data.special_tokens import plain_text_tokenizer
from inscp.data.splitting import split
from inscp.errors import UserError
from inscp.pretrained import tokenizer_name
from inscp.records import IGNORED, LeftContext, TaggedText, TemplateIds, TextSpan, TokenSequence

_MAX_CHARACTERS = 10_000_000
"""Maximum of one text, which is tokenised as a whole and takes about 150 times its size in memory meanwhile."""
OnTooLong = Callable[[str, str], None]
_Piece = tuple[Sequence[int], bool]
"""Token ids, and whether they are training targets."""


def tokenize(
    documents: Iterable[TaggedText],
    tokenizer: PreTrainedTokenizerBase,
    row_length: int,
    on_too_long: OnTooLong,
    document_length: int | None = None,
) -> Iterator[TokenSequence]:
    """Token sequences of at most `row_length` tokens, in the order of the documents.

    Args:
        documents: tagged texts.
        tokenizer: a fast tokenizer (character offsets are needed to split long documents).
        row_length: in tokens.
        on_too_long: called with the source and the reason for a document that is too long and must not be split (a
            conversation), or is too large for memory; it raises or counts, and the document is skipped.
        document_length: in tokens; a longer text in the template is split. By default `row_length`.
    """
    return (sequence for _, sequence in tokenized(documents, tokenizer, row_length, on_too_long, document_length))


def tokenized(
    documents: Iterable[TaggedText],
    tokenizer: PreTrainedTokenizerBase,
    row_length: int,
    on_too_long: OnTooLong,
    document_length: int | None = None,
) -> Iterator[tuple[TaggedText, TokenSequence]]:
    """As `tokenize`, each sequence with the document that it belongs to."""
    if not tokenizer.is_fast:
        raise UserError(
            tokenizer_name(tokenizer),
            "it is a slow tokenizer without character offsets",
            "Convert it to a fast one (tokenizer.json).",
        )
    own = plain_text_tokenizer(tokenizer)
    encode = partial(own.encode_batch, add_special_tokens=False)
    policy = _LengthPolicy(row_length, document_length or row_length, on_too_long, own)
    with ThreadPoolExecutor(1) as worker:  # the tokenizer releases the GIL and works one batch ahead
        waiting: tuple[list[TaggedText], Future[list[Encoding]]] | None = None
        for batch in batches(_bounded(documents, on_too_long)):
            spans = (part for document in batch for part in document.parts if isinstance(part, TextSpan))
            texts = [span.left_context.text + span.text + span.right_context for span in spans]
            ahead = batch, worker.submit(encode, texts)
            if waiting:
                yield from _sequences(*waiting, policy)
            waiting = ahead
        if waiting:
            yield from _sequences(*waiting, policy)


def _bounded(documents: Iterable[TaggedText], on_too_long: OnTooLong) -> Iterator[TaggedText]:
    for document in documents:
        longest = max((len(part.text) for part in document.parts if isinstance(part, TextSpan)), default=0)
        if longest <= _MAX_CHARACTERS:
            yield document
        else:
            fix = "split it (a plain text with its source's option text_unit: paragraph)"
            on_too_long(
                document.source, f"a text of more than {_MAX_CHARACTERS:,} characters takes too much memory; {fix}"
            )


@dataclass(frozen=True, slots=True)
class _LengthPolicy:
    """Maximum tokens of a conversation and of a text that may be split, and what to do with longer ones."""

    row_length: int
    document_length: int
    on_too_long: OnTooLong
    tokenizer: Tokenizer

    def encode(self, text: str, left_context: LeftContext) -> list[int]:
        return self.tokenizer.encode(left_context.text + text, add_special_tokens=False).ids[left_context.n_tokens :]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The planned contents of a sequence."""

    document: TaggedText
    pieces: list[_Piece]
    part: int = 1
    parts: int = 1


def _sequences(
    batch: list[TaggedText], encodings: Future[list[Encoding]], policy: _LengthPolicy
) -> Iterator[tuple[TaggedText, TokenSequence]]:
    """The sequences of a batch. Their arrays are slices of one array: making many small arrays is slow."""
    encoded = iter(encodings.result())
    plans = [plan for document in batch for plan in _planned(document, encoded, policy)]
    pieces = [piece for plan in plans for piece in plan.pieces]
    lengths = [len(ids) for ids, _ in pieces]
    input_ids = np.fromiter(chain.from_iterable(ids for ids, _ in pieces), np.int32, sum(lengths))
    is_target = np.repeat([is_target for _, is_target in pieces], lengths)
    labels = np.where(is_target, input_ids, np.int32(IGNORED))
    end = 0
    for plan in plans:
        start, end = end, end + sum(len(ids) for ids, _ in plan.pieces)
        arrays = input_ids[start:end], labels[start:end]
        yield plan.document, TokenSequence(plan.document.source, *arrays, plan.part, plan.parts)


def _planned(document: TaggedText, encoded: Iterator[Encoding], policy: _LengthPolicy) -> Iterator[_Plan]:
    pieces: list[_Piece] = []
    spans: list[tuple[int, TextSpan, Encoding]] = []
    for part in document.parts:
        if isinstance(part, TemplateIds):
            pieces.append((part.ids, part.is_target))
        else:
            encoding, n_context = next(encoded), part.left_context.n_tokens
            spans.append((len(pieces), part, encoding))
            pieces.append((encoding.ids[n_context:] if n_context else encoding.ids, part.is_target))
    length = sum(len(ids) for ids, _ in pieces)
    longest = policy.document_length if len(spans) == 1 else policy.row_length
    if length <= longest:
        yield _Plan(document, pieces)
        return
    if len(spans) != 1:
        policy.on_too_long(document.source, f"a conversation of more than {longest} tokens, which cannot be split")
        return
    index, span, encoding = spans[0]
    ids, is_target = pieces[index]
    template = length - len(ids)
    room = longest - template
    key, least = ("data.row_length", 1) if longest == policy.row_length else ("data.document_length", template)
    if room < least:  # short chunks in a long template would teach the model to answer briefly
        what = f"the chat template leaves {room} of {longest} tokens for text"
        raise UserError(
            key, what, f"Give at least {2 * template}, or shorten what precedes the text (data.tagger.system: none)."
        )
    ahead, encode = len(span.left_context.text), partial(policy.encode, left_context=span.left_context)
    offsets = encoding.offsets[span.left_context.n_tokens :]
    if ahead:
        offsets = [(max(0, start - ahead), end - ahead) for start, end in offsets]
    found = list(split(span.text, ids, offsets, room, encode))
    for number, piece in enumerate(found, 1):
        yield _Plan(document, [*pieces[:index], (piece, is_target), *pieces[index + 1 :]], number, len(found))
