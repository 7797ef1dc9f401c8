"""Where optimizer steps end."""

from lightning import Trainer


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether micro-batch `batch_idx` (from 0) is the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
