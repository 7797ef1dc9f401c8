"""Distillation on replayed text: the model learns the predictions of a teacher, usually itself before training.

As training targets, self-generated answers are single samples of the model's predictions, and human-written answers are
not even that. KL(teacher || model) over the whole vocabulary has no sampling noise (Hinton et al. 2015, arXiv
1503.02531; Li and Hoiem 2016, arXiv 1606.09282): it and its gradient are 0 as long as the model predicts what the
teacher predicts, whoever wrote the text.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from lightning.pytorch.strategies import Strategy
from torch.distributed.fsdp import FSDPModule

from inscp.errors import UserError
from inscp.model.adapters import LoRA, without_adapters
from inscp.model.loss import NextTokenLoss, Predictions
from inscp.model.strategies import auxiliary_model
from inscp.pretrained import embedding_rows, foreign_token, load_tokenizer, longest_input
from inscp.records import PackedBatch


@dataclass(frozen=True)
class Distillation:
    """Self-distillation on replayed rows (`data.replay`): KL divergence to a teacher's predictions as the loss.

    Args:
        teacher: model with the same vocabulary, named as in `model.pretrained`; by default that model, as it is before
            training. With adapters it is the frozen base model; else it needs memory for a second copy of the weights.
        weight: weight of a replayed token's divergence, relative to the negative log-likelihood of other tokens; also
            applied in `train/loss`, but not in `train/divergence`.
    """

    teacher: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise UserError("model.distillation.weight", f"it must be positive, but is {self.weight:g}", "Give 1, say.")

    def teacher_of(self, pretrained: str) -> str:
        """The teacher's name, for a model that was loaded from `pretrained`."""
        return self.teacher or pretrained

    def is_adapter_base(self, pretrained: str, adapter: LoRA | None) -> bool:
        """Whether the teacher is the model beneath the adapters, so that no second copy is needed."""
        return adapter is not None and self.teacher_of(pretrained) == pretrained


class Teacher:
    """A frozen model whose predictions the trained model learns on replayed rows.

    Args:
        root: the model, on its devices.
        importance: weight of the divergence from its predictions.
        is_adapter_base: whether the root is the trained model, which without its adapters is its own teacher.
    """

    def __init__(self, root: NextTokenLoss, importance: float = 1.0, is_adapter_base: bool = False) -> None:
        self.root, self._importance, self.is_adapter_base = root, importance, is_adapter_base

    @torch.no_grad()
    def predictions(self, batch: PackedBatch) -> Predictions | None:
        """The predictions at the target positions of the batch's replayed rows; None if it has none."""
        rows = batch.replayed if batch.replayed_rows else None
        if isinstance(self.root, FSDPModule):  # every rank must take part in each all-gather
            rows = rows or _dummy_batch(batch)
        if rows is None:
            return None
        with _without_adapters_and_dropout(self.root) if self.is_adapter_base else nullcontext():
            return replace(self.root(rows, return_predictions=True), importance=self._importance)


@contextmanager
def _without_adapters_and_dropout(root: NextTokenLoss) -> Iterator[None]:
    root.eval()
    try:
        with without_adapters(root):
            yield
    finally:
        root.train()


def load_teacher(
    how: Distillation, pretrained: str, learner: NextTokenLoss, adapter: LoRA | None, strategy: Strategy,
    dtype: torch.dtype, attention: str | None, row_length: int,
) -> Teacher:  # fmt: skip
    """
    Args:
        how: the teacher and its weight.
        pretrained: name from which the trained model was loaded.
        learner: the trained model, on its devices.
        adapter: its adapter; None if its own weights are trained.
        strategy: places the teacher on the devices like the trained model.
        dtype: compute dtype of the teacher.
        attention: attention implementation of transformers, as for the trained model.
        row_length: context length that the teacher needs, in tokens.

    Raises:
        UserError: the teacher does not fit the model.
    """
    if how.is_adapter_base(pretrained, adapter):
        return Teacher(learner, how.weight, is_adapter_base=True)
    spec = how.teacher_of(pretrained)
    require_teacher(spec, pretrained, row_length)
    return Teacher(auxiliary_model(strategy, spec, dtype, attention), how.weight)


def require_teacher(teacher: str, pretrained: str, row_length: int) -> None:
    """Check that `teacher` can teach the model that was loaded from `pretrained`.

    Raises:
        UserError: it has a different vocabulary, an output layer of another size, or too short a context.
    """
    if teacher != pretrained:
        both = load_tokenizer(teacher), load_tokenizer(pretrained)
        if (alien := foreign_token(*both) or foreign_token(*reversed(both))) is not None:
            what = f"{teacher} has a different vocabulary ({alien!r})"
            raise UserError("model.distillation.teacher", what, "Use one with the model's vocabulary.")
    if row_length > (longest := longest_input(teacher)):
        what = f"{teacher} has a context length of {longest:,} tokens, but rows have {row_length:,}"
        raise UserError("model.distillation.teacher", what, f"Set data.row_length to {longest}, or use another.")
    sizes = [embedding_rows(spec) for spec in (teacher, pretrained)]
    if len(set(sizes)) > 1:
        what = f"its output layer has {sizes[0]:,} rows, but the model's has {sizes[1]:,}"
        raise UserError("model.distillation.teacher", what, "Use one with as many.")


def _dummy_batch(batch: PackedBatch) -> PackedBatch:
    """A batch of one token without a target."""
    ids, targets, positions = (t[:1, :1] for t in (batch.input_ids, batch.targets, batch.position_ids))
    return replace(
        batch,
        input_ids=ids,
        targets=targets,
        position_ids=positions,
        lengths=(1,),
        target_positions=batch.target_positions[:0],
    )
