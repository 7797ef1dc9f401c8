"""Where a text that is too long for one document is split, so that each piece begins and ends as an answer does."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import regex

from inscp.text.words import UNSPACED

_BLANK = r"[\s\u200b]"
"""White space, and the space without width that stands between words in Khmer, Thai and Burmese."""
_SENTENCE = regex.compile(
    rf"(?:\.(?=[{_BLANK}\p{{Pe}}\p{{Pf}}\"']|$)|[[\p{{STerm}}…]--[.]])+[\p{{Pe}}\p{{Pf}}\"']*{_BLANK}*|\n{_BLANK}*",
    regex.V1,
)
"""The end of a sentence in any script, its closing marks and the space behind it; no point inside a number or name."""
_CLAUSE = regex.compile(rf"{_SENTENCE.pattern}|[,;:，、；：،؛]{_BLANK}*|{_BLANK}+", regex.V1)
"""The end of a sentence, a clause or a word."""
_CHARACTER = regex.compile(r"\X\p{M}*")
"""With all its marks; some of Burmese are no part of the grapheme cluster."""
_WORD = regex.compile(rf"[^\s\u200b{UNSPACED}]+|{_CHARACTER.pattern}")
"""What no space divides; a character where the script has no spaces."""
_SPACE = regex.compile(rf"{_BLANK}*")
_LOOKED_AHEAD = 64  # characters behind the last token that fits: they show whether a full stop ends a sentence
_ENCODED_AGAIN = 32  # most tokens that are encoded again where a piece begins inside white space


def split(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], room: int, encode: Callable[[str], list[int]]
) -> Iterator[list[int]]:
    """The token ids of the pieces of a tokenised text, each of at most `room` tokens.

    A piece ends with the last sentence that ends in the second half of the room, else with the last clause or word
    behind its first quarter; else, as where there are no spaces between words, with a run of another script or a
    character and its marks (which may be several byte-level tokens); only where one character alone has more tokens
    than the room is it divided. No last piece is shorter than a quarter of the room. Nothing is left out but white
    space between two pieces; a word that had its space before it is tokenised anew where it begins a piece.

    Args:
        text: what was tokenised.
        ids: its tokens.
        offsets: per token, the characters [start, end) that it covers.
        room: tokens a piece, at least 1.
        encode: tokenises a word.
    """
    ends = [end for _, end in offsets]

    def is_blank(inside: str) -> bool:
        return _SPACE.fullmatch(inside) is not None

    def begins_character(token: int) -> bool:
        return offsets[token][0] >= ends[token - 1]

    def last_end(pattern: regex.Pattern[str], start: int, first: int, limit: int) -> int | None:
        """The last token in (first, limit] that begins behind a match of the pattern, looked for from `start` on."""
        window = offsets[start][0], min(ends[limit] + _LOOKED_AHEAD, len(text))
        for match in reversed(list(pattern.finditer(text, *window))):
            token = bisect_right(ends, match.end())
            if first < token <= limit and begins_character(token):
                inside = text[offsets[token][0] : match.end()]  # a token may hold a space and the word behind it
                if is_blank(inside):
                    return token
        return None

    def cut_within(least: int, limit: int) -> int:
        start, quarter, half = least - 1, least + (limit - least) // 4, least + (limit - least) // 2
        return (
            last_end(_SENTENCE, half, half, limit)
            or last_end(_CLAUSE, quarter, quarter, limit)
            or last_end(_WORD, start, half, limit)
            or last_end(_CHARACTER, start, start, limit)
            or next(filter(begins_character, range(limit, start, -1)), limit)
        )

    def beginning(cut: int) -> tuple[list[int], int]:
        """The first word without the space before it, and the token behind that word."""
        if not begins_character(cut):
            return [], cut
        start = _SPACE.match(text, ends[cut - 1]).end()
        token = bisect_right(ends, start)
        if token == len(ids) or ends[token - 1] == offsets[token][0] == start:
            return [], token
        behind = token + 1
        while behind < len(ids) and behind < token + _ENCODED_AGAIN and not follows_space(behind):
            behind += 1
        while behind < len(ids) and not begins_character(behind):
            behind += 1
        stop = offsets[behind][0] if behind < len(ids) else len(text)
        word = encode(text[start:stop].rstrip())
        return (word, behind) if len(word) <= room // 2 else ([], token)

    def follows_space(token: int) -> bool:
        return offsets[token][0] > ends[token - 1] or is_blank(text[offsets[token][0]])

    word: list[int] = []
    begin = 0
    while len(word) + len(ids) - begin > room:
        least = begin if word else begin + 1
        cut = cut_within(least, max(least, min(begin + room - len(word), len(ids) - room // 4)))
        end = cut
        while end > least and is_blank(text[offsets[end - 1][0] : ends[end - 1]]):
            end -= 1
        yield [*word, *ids[begin:end]]
        word, begin = beginning(cut)
    if word or begin < len(ids):
        yield [*word, *ids[begin:]]
