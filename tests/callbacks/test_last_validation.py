"""What the card says of the model is measured on the model that is exported."""

from pathlib import Path
from typing import Any

import pytest
from corpus import Losses, data_module, fit, module, trainer
from lightning.pytorch.loggers.logger import DummyLogger

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.last_validation import LastValidation


class Steps(DummyLogger):
    """Keeps at which steps a metric is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name in metrics:
            self.steps.setdefault(name, []).append(step)


def fitted(
    folder: Path, corpus: Path, model: str, max_steps: int, **options: Any
) -> tuple[Losses, list[int], dict[str, float]]:
    """A training; where its held-out loss was logged, and the last one, which is that of the model at its end."""
    learner, logger = module(model), Steps()
    data = data_module(corpus, model, validation={"held": str(corpus)}, max_steps=max_steps)
    saving = Checkpoints(str(folder / "kept"), every_n_steps=max_steps)
    losses = fit(folder, data, LastValidation(), saving, learner=learner, logger=logger, **options)
    found = dict(learner.held_out)
    [measured] = trainer(folder).validate(learner, datamodule=data, verbose=False)
    assert found["held"] == pytest.approx(measured["val/held/loss"], rel=1e-6)
    return losses, logger.steps["val/held/loss"], found


def test_where_the_interval_does_not_divide_the_training_the_end_is_measured_too(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    _, measured, _ = fitted(tmp_path, corpus, tiny_model_folder, max_steps=10, val_check_interval=4)
    assert measured == [3, 7, 9]  # Lightning counts from 0


def test_where_nothing_is_left_to_train_the_end_is_measured(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    _, measured, whole = fitted(tmp_path, corpus, tiny_model_folder, max_steps=4)
    assert measured == [3]  # once
    checkpoint = tmp_path / "kept" / "step-00000004"
    losses, measured, again = fitted(tmp_path, corpus, tiny_model_folder, max_steps=4, resume=checkpoint)
    assert not losses.steps
    assert again == whole
    assert measured == [3]
