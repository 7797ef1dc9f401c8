"""Keys and values of what was read, with room for what comes: transformers copies all of them for every new token."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens for which memory is taken beyond those that are held, each time that it is full."""


class RoomyLayer(DynamicLayer):
    """A layer that writes a new token's keys and values behind those that are there.

    Args:
        layer: what it goes on with; it holds some already.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))
        assert self.keys is not None
        assert self.values is not None
        self._keys_room, self._values_room = self.keys, self.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens, [rows, heads, tokens, width], these behind the others."""
        assert self.keys is not None
        assert self.values is not None
        end = self.keys.shape[-2] + key_states.shape[-2]
        self._keys_room = _room(self.keys, key_states, self._keys_room)
        self._values_room = _room(self.values, value_states, self._values_room)
        self.keys, self.values = keys, values = self._keys_room[..., :end, :], self._values_room[..., :end, :]
        return keys, values


def _room(held: torch.Tensor, new: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Memory that begins with both; another one where `held` is no part of it any more, or it is full."""
    begin, end = held.shape[-2], held.shape[-2] + new.shape[-2]
    if held.untyped_storage().data_ptr() != room.untyped_storage().data_ptr() or end > room.shape[-2]:
        room = held.new_empty(*held.shape[:-2], end + ROOM, held.shape[-1])
        room[..., :begin, :] = held
    room[..., begin:end, :] = new
    return room


def with_room(cache: Cache) -> Cache:
    """The same cache, whose plain layers have room; those of other kinds stay as they are."""
    cache.layers = [RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
