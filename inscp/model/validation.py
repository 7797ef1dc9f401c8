"""Validation during training, on held-out text and by generation, with the weights that would be exported."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from lightning import LightningModule
from torch import nn
from torchmetrics.aggregation import MeanMetric
from transformers import PreTrainedModel

from inscp.data.datamodule import data_of
from inscp.model.loss import NextTokenLoss
from inscp.model.moving_average import MovingAverage
from inscp.model.parallel import gathered_root, reshard
from inscp.model.precision import ComputeCopies
from inscp.records import PackedBatch


class ValidationModule(LightningModule):
    """Measures held-out losses and generates answers between optimizer steps, with averaged weights if there are any.

    Attributes:
        loss: contains the language model.
        compile_blocks: whether its blocks are compiled.
        weights: the trained weights by name.
        average: their moving average; None if none is kept.
        copies: low-precision copies of the weights, which replace them in forward and backward passes; None if the
            weights themselves are used.
        held_out: latest loss of each held-out set by its name, in nats per token.
        held_out_step: number of optimizer steps when these were measured; None before the first measurement.
        held_out_before: the losses of the original model.
    """

    loss: NextTokenLoss
    compile_blocks: bool

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, nn.Parameter] = {}
        self.average: MovingAverage | None = None
        self.copies: ComputeCopies | None = None
        self.held_out: dict[str, float] = {}
        self.held_out_step: int | None = None
        self.held_out_before: dict[str, float] = {}
        self._validation_loss: list[MeanMetric] = []

    @property
    def model(self) -> PreTrainedModel:
        """The language model (after `configure_model`)."""
        return self.loss.model

    def exported_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by name, as they are exported: the average if one is kept."""
        if self.average:
            return self.average.tensors
        return {name: weight.detach() for name, weight in self.weights.items()}

    @contextmanager
    def generation_mode(self) -> Iterator[PreTrainedModel]:
        """The model as it would be exported now, for generation between steps; every rank must make the same calls.

        Adapters are the exception: an export adds them to the weights and rounds the sum.
        """
        self._swap_average()
        self.loss.eval()
        stance = torch.compiler.set_stance("force_eager") if self.compile_blocks else nullcontext()  # lengths change
        try:
            with gathered_root(self.loss), stance, self.trainer.precision_plugin.forward_context():
                yield self.model
        finally:
            self.loss.train()
            self._swap_average()

    def on_validation_epoch_start(self) -> None:
        names = data_of(self.trainer).validation_names
        self._validation_loss = [MeanMetric().to(self.device) for _ in names]
        self._swap_average()

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        # Also if this rank has no rows left: under FSDP every rank must take part in every forward pass.
        n_targets = len(batch.target_positions)
        mean = self.loss(batch).total / max(1, n_targets)
        self._validation_loss[dataloader_idx].update(mean, weight=n_targets)

    def on_validation_epoch_end(self) -> None:
        """Log loss (nats per token) and perplexity of each held-out set, and keep the losses."""
        names = data_of(self.trainer).validation_names
        prefix = "test" if self.trainer.testing else "val"
        losses = {name: metric.compute() for name, metric in zip(names, self._validation_loss, strict=True)}
        for name, loss in losses.items():
            self.log(f"{prefix}/{name}/loss", loss)
            self.log(f"{prefix}/{name}/perplexity", loss.exp())
        values = {name: loss.item() for name, loss in losses.items()}
        if self.trainer.sanity_checking:
            self.held_out_before = values
        else:
            self.held_out, self.held_out_step = values, self.trainer.global_step
        self._swap_average()

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def refresh_copies(self) -> None:
        """Copy changed weights into their low-precision copies; to be called after every change."""
        if self.copies:
            self.copies.refresh()

    def _swap_average(self) -> None:
        if self.average is None:
            return
        reshard(self.loss)
        self.average.swap()
        self.refresh_copies()
