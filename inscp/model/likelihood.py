"""The negative log-likelihood of token sequences under a model.

They are scored as in training: concatenated in a row and separated by their positions, so that nothing is padded; the
softmax is fp32 and sums are float64.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from inscp.data.packing import collate
from inscp.model.loss import NextTokenLoss
from inscp.records import PackedBatch, TokenSequence


def batches_by_length(pieces: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    """Batches of pieces of similar length, longest first, with up to `batch_tokens` tokens per batch."""
    batch: list[TokenSequence] = []
    held = 0
    for piece in sorted(pieces, key=lambda piece: -len(piece.input_ids)):
        if batch and held + len(piece.input_ids) > batch_tokens:
            yield batch
            batch, held = [], 0
        batch.append(piece)
        held += len(piece.input_ids)
    if batch:
        yield batch


@torch.no_grad()
def summed_nlls(loss: NextTokenLoss, pieces: Sequence[TokenSequence]) -> np.ndarray:
    """Summed negative log-likelihood of each piece's targets in nats, float64; each piece has a target.

    Args:
        loss: the model, in evaluation mode on its device.
        pieces: scored in one forward pass.
    """
    nlls = loss(pack_row(pieces, next(loss.parameters()).device), per_target=True).double().cpu().numpy()
    starts = np.cumsum([0, *(piece.n_targets for piece in pieces[:-1])])
    return np.asarray(np.add.reduceat(nlls, starts))  # each by itself: an infinite one does not spoil the others


def pack_row(pieces: Sequence[TokenSequence], device: torch.device) -> PackedBatch:
    """The pieces as one row without padding."""
    length = sum(len(piece.input_ids) for piece in pieces)
    input_ids, targets, [lengths] = collate([list(pieces)], length, 0)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    ids, wanted, position_ids = (torch.from_numpy(array).long() for array in (input_ids, targets, positions))
    return PackedBatch(ids, wanted, position_ids, tuple(lengths), step_targets=1, step_tokens=length).to(device)
