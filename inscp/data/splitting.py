"""Where a text that is too long for one document is split, so that each piece begins and ends as an answer does."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import regex

_SENTENCE = regex.compile(r"(?:\.(?=[\s\p{Pe}\p{Pf}\"']|$)|[[\p{STerm}…]--[.]])+[\p{Pe}\p{Pf}\"']*\s*|\n\s*", regex.V1)
"""The end of a sentence in any script, its closing marks and the space behind it; no point inside a number or name."""
_CLAUSE = regex.compile(r"[,;:，、；：،؛]\s*|\s+")
_SPACE = regex.compile(r"\s*")
_LOOKED_AHEAD = 64  # characters behind the last token that fits: they show whether a full stop ends a sentence
_WORD = 32  # most tokens that are encoded again where a piece begins inside white space


def split(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], room: int, encode: Callable[[str], list[int]]
) -> Iterator[list[int]]:
    """The token ids of the pieces of a tokenised text, each of at most `room` tokens.

    A piece ends with the last sentence that ends in the second half of the room, else with the last clause or word
    there, else with a character (which may be several byte-level tokens); only where one character alone has more
    tokens than the room is it divided. No last piece is shorter than a quarter of the room. Nothing is left out but
    white space between two pieces; a word that had its space before it is tokenised anew where it begins a piece.

    Args:
        text: what was tokenised.
        ids: its tokens.
        offsets: per token, the characters [start, end) that it covers.
        room: tokens a piece, at least 1.
        encode: tokenises a word.
    """
    ends = [end for _, end in offsets]

    def begins_character(token: int) -> bool:
        return offsets[token][0] >= ends[token - 1]

    def last_end(pattern: regex.Pattern[str], first: int, limit: int) -> int | None:
        """The last token in (first, limit] that begins behind a match of the pattern."""
        window = offsets[first][0], min(ends[limit] + _LOOKED_AHEAD, len(text))
        for match in reversed(list(pattern.finditer(text, *window))):
            token = bisect_right(ends, match.end())
            if first < token <= limit and begins_character(token):
                inside = text[offsets[token][0] : match.end()]  # a token may hold a space and the word behind it
                if not inside.strip():
                    return token
        return None

    def cut_within(least: int, limit: int) -> int:
        first = least + (limit - least) // 2
        found = last_end(_SENTENCE, first, limit) or last_end(_CLAUSE, first, limit)
        return found or next(filter(begins_character, range(limit, least - 1, -1)), limit)

    def beginning(cut: int) -> tuple[list[int], int]:
        """The first word without the space before it, and the token behind that word."""
        if not begins_character(cut):
            return [], cut
        start = _SPACE.match(text, ends[cut - 1]).end()
        token = bisect_right(ends, start)
        if token == len(ids) or ends[token - 1] == offsets[token][0] == start:
            return [], token
        behind = token + 1
        while behind < len(ids) and behind < token + _WORD and not follows_space(behind):
            behind += 1
        while behind < len(ids) and not begins_character(behind):
            behind += 1
        stop = offsets[behind][0] if behind < len(ids) else len(text)
        word = encode(text[start:stop].rstrip())
        return (word, behind) if len(word) <= room // 2 else ([], token)

    def follows_space(token: int) -> bool:
        return offsets[token][0] > ends[token - 1] or text[offsets[token][0]].isspace()

    word: list[int] = []
    begin = 0
    while len(word) + len(ids) - begin > room:
        least = begin if word else begin + 1
        cut = cut_within(least, max(least, min(begin + room - len(word), len(ids) - room // 4)))
        end = cut
        while end > least and not text[offsets[end - 1][0] : ends[end - 1]].strip():
            end -= 1
        yield [*word, *ids[begin:end]]
        word, begin = beginning(cut)
    if word or begin < len(ids):
        yield [*word, *ids[begin:]]
