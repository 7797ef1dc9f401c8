"""Streams in groups of bounded size, so that memory does not depend on document length."""

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Protocol, TypeVar

_MAX_ITEMS, _MAX_CHARACTERS = 1024, 1 << 19


class HasCharacters(Protocol):
    """A record, a tagged text, a candidate."""

    @property
    def n_characters(self) -> int:
        """Of all its texts."""


T = TypeVar("T", bound=HasCharacters)
U = TypeVar("U")


def batches(stream: Iterable[T]) -> Iterator[list[T]]:
    """The stream in groups, each closed at 1,024 members or half a million characters."""
    return grouped(stream, attrgetter("n_characters"))


def grouped(stream: Iterable[U], n_characters: Callable[[U], int]) -> Iterator[list[U]]:
    """As `batches`, with the characters of a member counted by `n_characters`."""
    held: list[U] = []
    characters = 0
    for one in stream:
        held.append(one)
        characters += n_characters(one)
        if characters >= _MAX_CHARACTERS or len(held) == _MAX_ITEMS:
            yield held
            held, characters = [], 0
    if held:
        yield held
