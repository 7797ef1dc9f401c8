"""Streams in groups of a bounded size, so that memory does not depend on how long documents are."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

_MEMBERS, _CHARACTERS = 1024, 1 << 19


class HasCharacters(Protocol):
    """A record, a tagged text, a candidate."""

    @property
    def n_characters(self) -> int:
        """Of all its texts."""


T = TypeVar("T", bound=HasCharacters)


def batches(stream: Iterable[T]) -> Iterator[list[T]]:
    """What comes, in groups of at most 1,024 that hold half a million characters (or a single longer one)."""
    held: list[T] = []
    characters = 0
    for one in stream:
        held.append(one)
        characters += one.n_characters
        if characters >= _CHARACTERS or len(held) == _MEMBERS:
            yield held
            held, characters = [], 0
    if held:
        yield held
