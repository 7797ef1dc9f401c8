"""A KV cache with preallocated memory: transformers copies the whole cache for every new token."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 32
"""Tokens that a new buffer has room for, beyond those in the cache."""


class PreallocatedLayer(DynamicLayer):
    """A cache layer that appends new keys and values in place.

    Args:
        layer: non-empty layer whose keys and values it takes over.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))
        assert self.keys is not None
        assert self.values is not None
        self._keys_buffer, self._values_buffer = self.keys, self.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values; returns those of all tokens, [rows, heads, tokens, width]."""
        assert self.keys is not None
        assert self.values is not None
        end = self.keys.shape[-2] + key_states.shape[-2]
        self._keys_buffer = _appended(self.keys, key_states, self._keys_buffer)
        self._values_buffer = _appended(self.values, value_states, self._values_buffer)
        self.keys, self.values = keys, values = self._keys_buffer[..., :end, :], self._values_buffer[..., :end, :]
        return keys, values


def _appended(held: torch.Tensor, new: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """A buffer that begins with `held` and `new`; a new one if `held` is not in the old one, or that is full."""
    begin, end = held.shape[-2], held.shape[-2] + new.shape[-2]
    if held.untyped_storage().data_ptr() != buffer.untyped_storage().data_ptr() or end > buffer.shape[-2]:
        buffer = held.new_empty(*held.shape[:-2], end + SPARE_TOKENS, held.shape[-1])
        buffer[..., :begin, :] = held
    buffer[..., begin:end, :] = new
    return buffer


def preallocated(cache: Cache) -> Cache:
    """The same cache with its plain layers preallocated; layers of other kinds stay as they are."""
    cache.layers = [PreallocatedLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
