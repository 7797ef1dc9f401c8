"""Tagged text becomes token sequences; a long document becomes several tagged pieces, and no token of it is lost.

Texts are tokenised in batches, each by itself, without special tokens: a `<|eot_id|>` that stands in a corpus stays
text. A document that is longer than a row is split where a sentence or paragraph ends, and every piece is tagged.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from inscp.errors import UserError
from inscp.records import IGNORED, TaggedText, TemplateIds, TextSpan, TokenSequence

_BATCH = 1024
_SENTENCE_ENDS = frozenset("\n。！？!?.؟।")
OnTooLong = Callable[[str, str], None]


def tokenize(
    documents: Iterable[TaggedText], tokenizer: PreTrainedTokenizerBase, row_length: int, on_too_long: OnTooLong
) -> Iterator[TokenSequence]:
    """Token sequences of at most `row_length` tokens, in the order of the documents.

    Args:
        documents: tagged texts.
        tokenizer: a fast tokenizer (character offsets are needed to split long documents).
        row_length: in tokens.
        on_too_long: called with the source and the reason for a document that is too long and must not be split (a
            conversation); it raises or counts, and the document is left out.
    """
    if not tokenizer.is_fast:
        where = tokenizer.name_or_path or "tokenizer"
        raise UserError(
            where, "it is a slow tokenizer without character offsets", "Convert it to a fast one (tokenizer.json)."
        )
    stream = iter(documents)
    own = _own(tokenizer)
    with ThreadPoolExecutor(1) as worker:  # the tokenizer works outside the interpreter's lock, a batch ahead
        waiting: tuple[list[TaggedText], Future[Iterable[Any]]] | None = None
        while batch := list(islice(stream, _BATCH)):
            texts = [part.text for document in batch for part in document.parts if isinstance(part, TextSpan)]
            ahead = batch, worker.submit(_encode, texts, own)
            if waiting:
                yield from _finished(*waiting, row_length, on_too_long)
            waiting = ahead
        if waiting:
            yield from _finished(*waiting, row_length, on_too_long)


def _finished(
    batch: list[TaggedText], encodings: Future[Iterable[Any]], row_length: int, on_too_long: OnTooLong
) -> Iterator[TokenSequence]:
    encoded = iter(encodings.result())
    for document in batch:
        yield from _sequences(document, encoded, row_length, on_too_long)


@lru_cache(maxsize=2)
def _own(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy for the other thread: a tokenizer keeps the settings of its last call."""
    return deepcopy(tokenizer)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterable[Any]:
    # split_special_tokens: strings that look like special tokens are tokenised as the characters they are.
    encoding = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    return encoding.encodings  # type: ignore[no-any-return]


def _sequences(
    document: TaggedText, encoded: Iterator[Any], row_length: int, on_too_long: OnTooLong
) -> Iterator[TokenSequence]:
    pieces: list[tuple[np.ndarray, bool]] = []
    spans: list[tuple[int, str, Any]] = []
    for part in document.parts:
        if isinstance(part, TemplateIds):
            ids = np.asarray(part.ids, dtype=np.int32)
        else:
            encoding = next(encoded)
            ids = np.asarray(encoding.ids, dtype=np.int32)
            spans.append((len(pieces), part.text, encoding))
        pieces.append((ids, part.is_target))
    if sum(len(ids) for ids, _ in pieces) <= row_length:
        yield _joined(document.source, pieces)
        return
    if len(spans) != 1:
        on_too_long(document.source, f"a conversation of more than {row_length} tokens, which cannot be split")
        return
    index, text, encoding = spans[0]
    ids, is_target = pieces[index]
    room = row_length - sum(len(ids) for ids, _ in pieces) + len(ids)
    cuts = split_points(text, encoding.offsets, room) if room > 0 else []
    if not cuts:
        message = f"the chat template leaves {room} of {row_length} tokens for text"
        raise UserError("data.row_length", message, "Give a larger number.")
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(ids)], strict=True), 1):
        part_pieces = [*pieces[:index], (ids[start:end], is_target), *pieces[index + 1 :]]
        yield _joined(document.source, part_pieces, number, len(cuts) + 1)


def split_points(text: str, offsets: list[tuple[int, int]], room: int) -> list[int]:
    """Where to split a tokenised text into parts of at most `room` tokens.

    The last sentence end in the second half of the room wins, else the last token that begins a character, so that no
    part ends inside one (a character may be several byte-level tokens). Only where one character alone has more
    tokens than the room is it divided.

    Args:
        text: what was tokenised.
        offsets: per token, the characters [start, end) that it covers.
        room: tokens a part, at least 1.

    Returns:
        the indices of the tokens that begin the second, third, … part.
    """
    cuts: list[int] = []
    start = 0
    while len(offsets) - start > room:
        limit = start + room
        begins_character = [i for i in range(start + 1, limit + 1) if offsets[i][0] >= offsets[i - 1][1]]
        after_sentence = [
            i for i in begins_character if i > start + room // 2 and text[offsets[i - 1][1] - 1] in _SENTENCE_ENDS
        ]
        start = (after_sentence or begins_character or [limit])[-1]
        cuts.append(start)
    return cuts


def _joined(source: str, pieces: list[tuple[np.ndarray, bool]], part: int = 1, parts: int = 1) -> TokenSequence:
    input_ids = np.concatenate([ids for ids, _ in pieces])
    labels = np.concatenate([ids if is_target else np.full_like(ids, IGNORED) for ids, is_target in pieces])
    return TokenSequence(source, input_ids, labels, part, parts)
