"""A cache with room holds what transformers' own holds, and copies nothing for a new token."""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from inscp.evaluation.kv_cache import SPARE_TOKENS, PreallocatedLayer, preallocated


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(2, rows, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))
    return drawn[0], drawn[1]


def cache(rows: int) -> DynamicCache:
    filled = DynamicCache()
    filled.update(*states(rows, 5, 0), layer_idx=0)
    return filled


def test_it_holds_the_same_through_tokens_rows_and_more_room() -> None:
    plain, roomy = cache(4), preallocated(cache(4))
    kept = [torch.tensor([3, 1, 0, 2]), torch.tensor([2, 0])]  # another order of as many, and fewer
    for step in range(3 * SPARE_TOKENS):
        if step % SPARE_TOKENS == 7 and kept:
            rows = kept.pop(0)
            for one in (plain, roomy):
                one.batch_select_indices(rows)
        new = states(plain.layers[0].keys.shape[0], 1, step)
        expected, found = (one.update(*new, layer_idx=0) for one in (plain, roomy))
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
        assert plain.get_seq_length() == roomy.get_seq_length()


def test_a_new_token_moves_nothing_while_there_is_room() -> None:
    roomy = preallocated(cache(2))
    places = set()
    for step in range(SPARE_TOKENS):
        keys, values = roomy.update(*states(2, 1, step), layer_idx=0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Other(DynamicLayer):
        pass

    mixed = cache(1)
    mixed.layers = [*mixed.layers, Other()]
    assert [type(layer) for layer in preallocated(mixed).layers] == [PreallocatedLayer, Other]
