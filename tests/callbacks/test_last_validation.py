"""What the card says of the model is measured on the model that is exported."""

from pathlib import Path
from typing import Any

import pytest
from corpus import Losses, data_module, module, trainer, write_corpus
from lightning.pytorch.loggers.logger import DummyLogger

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.last_validation import LastValidation
from inscp.callbacks.provenance import Provenance


class Steps(DummyLogger):
    """Keeps at which steps a metric is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name in metrics:
            self.steps.setdefault(name, []).append(step)


def fit(folder: Path, model: str, **options: Any) -> tuple[Any, Losses, Steps, dict[str, float]]:
    corpus, resume = write_corpus(folder), options.pop("resume", None)
    learner, losses, logger = module(model), Losses(), Steps()
    data = data_module(corpus, model, validation={"held": str(corpus)})
    saving = Checkpoints(str(folder / "kept"), every_n_steps=1)
    callbacks = [Provenance(folder), losses, LastValidation(), saving]
    run = trainer(folder, callbacks=callbacks, enable_checkpointing=True, **options)
    run.loggers = [logger]
    run.fit(learner, datamodule=data, ckpt_path=resume)
    found = dict(learner.held_out)
    [measured] = trainer(folder).validate(learner, datamodule=data, verbose=False)
    assert found["held"] == pytest.approx(measured["val/held/loss"], rel=1e-6)
    return learner, losses, logger, found


def test_where_the_interval_does_not_divide_the_training_the_end_is_measured_too(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    _, losses, logger, _ = fit(tmp_path, tiny_model_folder, val_check_interval=9)
    last = max(losses.steps)
    assert last % 9
    assert logger.steps["val/held/loss"] == [*range(8, last, 9), last - 1]  # Lightning counts from 0


def test_where_nothing_is_left_to_train_the_end_is_measured(tmp_path: Path, tiny_model_folder: str) -> None:
    _, losses, logger, whole = fit(tmp_path, tiny_model_folder)
    last = max(losses.steps)
    assert logger.steps["val/held/loss"] == [last - 1]  # once
    checkpoint = str(tmp_path / "kept" / f"step-{last:08}")
    _, losses, logger, again = fit(tmp_path, tiny_model_folder, resume=checkpoint)
    assert not losses.steps
    assert again == whole
    assert logger.steps["val/held/loss"] == [last - 1]
