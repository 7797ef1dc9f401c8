"""Likelihoods of continuations of a common context (mostly the choices of a question), which is computed once.

A row holds the context followed by every continuation. Each continuation attends only to the context and itself, at the
positions that it would have alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inscp.model.attention import layer_configs
from inscp.model.loss import NextTokenLoss, linear_nlls
from inscp.records import IGNORED, TokenSequence

_LONGEST_ROW = 1024
"""The cost of attention grows with the square of a row's length."""
_SAVED = 0.25
"""Minimum fraction of tokens to save: packed rows, the alternative, need no mask."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A context and its continuations.

    Attributes:
        context: ids [C], at least one.
        continuations: ids of each, at least one.
        places: indices of the continuations' sequences among all.
    """

    context: np.ndarray
    continuations: list[np.ndarray]
    places: list[int]

    @property
    def length(self) -> int:
        """Length of its row; nothing is predicted from the last token of a continuation."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)

    def row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, positions and segments (0 for the context, then one per continuation), each [length]."""
        parts = [self.context, *(ids[:-1] for ids in self.continuations)]
        begins = [0] + [len(self.context)] * len(self.continuations)
        positions = [begin + np.arange(len(part)) for begin, part in zip(begins, parts, strict=True)]
        segments = [np.full(len(part), number) for number, part in enumerate(parts)]
        return np.concatenate(parts), np.concatenate(positions), np.concatenate(segments)

    def sources(self) -> np.ndarray:
        """The index in the row from which each token of the continuations is predicted."""
        begin, places = len(self.context), []
        for ids in self.continuations:
            places += [len(self.context) - 1, *range(begin, begin + len(ids) - 1)]
            begin += len(ids) - 1
        return np.array(places)


def find_trees(loss: NextTokenLoss, sequences: Sequence[TokenSequence]) -> list[Tree]:
    """Trees of sequences that share a context, where computing it once pays; other sequences are in no tree.

    Args:
        loss: the model; if its attention cannot take a plain mask there are no trees.
        sequences: each with a target.
    """
    windows = [getattr(layer, "sliding_window", None) or _LONGEST_ROW for layer in layer_configs(loss.model)]
    if not (loss.by_document and loss.linear_head) or min(windows) < _LONGEST_ROW:
        return []
    alike: dict[bytes, list[Tree]] = {}
    for place, sequence in enumerate(sequences):
        begin = 1 + int(np.argmax(sequence.labels[1:] != IGNORED))
        context, continuation = sequence.input_ids[:begin], sequence.input_ids[begin:]
        if (sequence.labels[begin:] == IGNORED).any():
            continue
        trees = alike.setdefault(context.tobytes(), [])
        if not trees or trees[-1].length + len(continuation) > _LONGEST_ROW:
            trees.append(Tree(context, [], []))
        trees[-1].continuations.append(continuation)
        trees[-1].places.append(place)
    return [tree for trees in alike.values() for tree in trees if _saves_enough(tree)]


def _saves_enough(tree: Tree) -> bool:
    saved = (len(tree.places) - 1) * len(tree.context)
    return tree.length <= _LONGEST_ROW and saved >= _SAVED * (saved + tree.length)


@torch.no_grad()
def tree_nlls(loss: NextTokenLoss, trees: Sequence[Tree], batch_tokens: int) -> Iterator[tuple[int, float]]:
    """Summed negative log-likelihood of each continuation in nats, with its sequence's index.

    Args:
        loss: the model, in evaluation mode on its device.
        trees: as returned by `find_trees`.
        batch_tokens: tokens per forward pass, including padding.
    """
    waiting = sorted(trees, key=lambda tree: -tree.length)
    while waiting:
        rows = max(1, batch_tokens // waiting[0].length)
        batch, waiting = waiting[:rows], waiting[rows:]
        yield from _batch_nlls(loss, batch)


def _batch_nlls(loss: NextTokenLoss, trees: Sequence[Tree]) -> Iterator[tuple[int, float]]:
    weight = loss.model.get_output_embeddings().weight
    hidden = loss.model.base_model(**_inputs(trees, weight.device, weight.dtype)).last_hidden_state
    predicting = torch.cat([hidden[row, torch.from_numpy(tree.sources())] for row, tree in enumerate(trees)])
    tokens = np.concatenate([ids for tree in trees for ids in tree.continuations])
    nlls = linear_nlls(predicting, weight, torch.from_numpy(tokens).long().to(weight.device)).double().cpu().numpy()
    lengths = [len(ids) for tree in trees for ids in tree.continuations]
    sums = np.add.reduceat(nlls, np.cumsum([0, *lengths[:-1]]))
    yield from zip((place for tree in trees for place in tree.places), map(float, sums), strict=True)


def _inputs(trees: Sequence[Tree], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor | bool]:
    """Rows padded at their ends, which no token attends to, and an additive mask [B, 1, L, L]."""
    shape = (len(trees), max(tree.length for tree in trees))
    ids, positions, segments = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, tree in enumerate(trees):
        for whole, part in zip((ids, positions, segments), tree.row(), strict=True):
            whole[row, : tree.length] = part
        segments[row, tree.length :] = -1
    of = torch.from_numpy(segments).to(device)
    sees = (of[:, None, :] == of[:, :, None]) | (of[:, None, :] == 0)
    sees &= torch.ones(shape[1], shape[1], dtype=torch.bool, device=device).tril()
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "position_ids": torch.from_numpy(positions).to(device),
        "attention_mask": mask[:, None],
        "use_cache": False,
    }
