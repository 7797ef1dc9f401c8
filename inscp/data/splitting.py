"""Splitting of texts that are too long for one document into chunks that begin and end as an answer does."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import regex

from inscp.text.words import UNSPACED

_BLANK = r"[\s\u200b]"
"""White space, and the zero-width space between words in Khmer, Thai and Burmese."""
_SENTENCE = regex.compile(
    rf"(?:\.(?=[{_BLANK}\p{{Pe}}\p{{Pf}}\"']|$)|[[\p{{STerm}}…]--[.]])+[\p{{Pe}}\p{{Pf}}\"']*{_BLANK}*|\n{_BLANK}*",
    regex.V1,
)
"""The end of a sentence in any script, with closing marks and following space; not a point inside a number or name."""
_CLAUSE = regex.compile(rf"{_SENTENCE.pattern}|[,;:，、；：،؛]{_BLANK}*|{_BLANK}+", regex.V1)
"""The end of a sentence, a clause or a word."""
_CHARACTER = regex.compile(r"\X\p{M}*")
"""A character with all its marks; some Burmese marks are not part of the grapheme cluster."""
_WORD = regex.compile(rf"[^\s\u200b{UNSPACED}]+|{_CHARACTER.pattern}")
"""A run without spaces; a single character in scripts without spaces."""
_SPACE = regex.compile(rf"{_BLANK}*")
_LOOKED_AHEAD = 64  # characters after the last token that fits: they show whether a full stop ends a sentence
_ENCODED_AGAIN = 32  # maximum tokens that are encoded again where a chunk begins inside white space


def split(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], room: int, encode: Callable[[str], list[int]]
) -> Iterator[list[int]]:
    """The token ids of the chunks of a tokenised text, each of at most `room` tokens.

    A chunk ends with the last sentence that ends in the second half of the room, else with the last clause or word that
    ends after its first quarter; else, as where there are no spaces between words, with a run of another script or a
    character and its marks (which may be several byte-level tokens). A character is divided only if it alone has more
    tokens than the room. The last chunk is never shorter than a quarter of the room. Nothing is left out but white
    space between chunks; a word with a space before it is tokenised anew if it begins a chunk.

    Args:
        text: the text.
        ids: its tokens.
        offsets: per token, the characters [start, end) that it covers.
        room: maximum tokens per chunk, at least 1.
        encode: tokenises a word.
    """
    tokens = _Tokens(text, offsets)
    word: list[int] = []  # first word of the chunk, if tokenised anew; the rest begins with token `begin`
    begin = 0
    while len(word) + len(ids) - begin > room:
        least = begin if word else begin + 1
        cut = tokens.best_cut(least, max(least, min(begin + room - len(word), len(ids) - room // 4)))
        yield [*word, *ids[begin : tokens.without_space(least, cut)]]
        word, begin = tokens.beginning(cut, room // 2, encode)
    if word or begin < len(ids):
        yield [*word, *ids[begin:]]


class _Tokens:
    """A text and the characters [start, end) of it that each token covers. A cut is the index of the token after it."""

    def __init__(self, text: str, offsets: Sequence[tuple[int, int]]) -> None:
        self._text, self._offsets = text, offsets
        self._ends = [end for _, end in offsets]

    def best_cut(self, least: int, limit: int) -> int:
        """The most readable cut in [least, limit]."""
        start, quarter, half = least - 1, least + (limit - least) // 4, least + (limit - least) // 2
        return (
            self._last_cut(_SENTENCE, half, half, limit)
            or self._last_cut(_CLAUSE, quarter, quarter, limit)
            or self._last_cut(_WORD, start, half, limit)
            or self._last_cut(_CHARACTER, start, start, limit)
            or next(filter(self._begins_character, range(limit, start, -1)), limit)
        )

    def without_space(self, least: int, cut: int) -> int:
        """The cut before the white space that precedes a cut, but not before `least`."""
        while cut > least and self._is_blank(self._offsets[cut - 1][0], self._ends[cut - 1]):
            cut -= 1
        return cut

    def beginning(self, cut: int, most: int, encode: Callable[[str], list[int]]) -> tuple[list[int], int]:
        """How a chunk begins after a cut.

        Args:
            cut: the cut.
            most: maximum tokens of a first word that is tokenised anew.
            encode: tokenises a word.

        Returns:
            its first word without the space before it, if it has to be tokenised anew, and the token after that.
        """
        if not self._begins_character(cut):
            return [], cut
        start = _SPACE.match(self._text, self._ends[cut - 1]).end()
        token = bisect_right(self._ends, start)
        if token == len(self._ends) or self._ends[token - 1] == self._offsets[token][0] == start:
            return [], token
        after = self._after_word(token)
        stop = self._offsets[after][0] if after < len(self._ends) else len(self._text)
        word = encode(self._text[start:stop].rstrip())
        return (word, after) if len(word) <= most else ([], token)

    def _last_cut(self, pattern: regex.Pattern[str], start: int, first: int, limit: int) -> int | None:
        """The last cut in (first, limit] that follows a match of the pattern, searched from token `start` on."""
        window = self._offsets[start][0], min(self._ends[limit] + _LOOKED_AHEAD, len(self._text))
        for match in reversed(list(pattern.finditer(self._text, *window))):
            token = bisect_right(self._ends, match.end())
            # A token may hold both the space at which the match ends and the word after it.
            is_between = first < token <= limit and self._begins_character(token)
            if is_between and self._is_blank(self._offsets[token][0], match.end()):
                return token
        return None

    def _after_word(self, token: int) -> int:
        """The token after the word that begins in this one."""
        n = len(self._ends)
        most = min(token + _ENCODED_AGAIN, n)
        after = next(filter(self._follows_space, range(token + 1, most)), most)
        return next(filter(self._begins_character, range(after, n)), n)

    def _begins_character(self, token: int) -> bool:
        return self._offsets[token][0] >= self._ends[token - 1]

    def _follows_space(self, token: int) -> bool:
        start = self._offsets[token][0]
        return start > self._ends[token - 1] or self._is_blank(start, start + 1)

    def _is_blank(self, start: int, end: int) -> bool:
        """Whether the text has only white space in [start, end)."""
        return _SPACE.fullmatch(self._text, start, max(start, end)) is not None
