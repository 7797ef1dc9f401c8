"""What a training costs is counted, adds up where it goes on, and goes with the exported model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import Losses, data_module, fit, module

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.cost import TrainingCost, training_cost
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance
from inscp.callbacks.throughput import Throughput
from inscp.cost.flops import ModelSize, Work, forward_flops, training_flops
from inscp.cost.ledger import Cost, Ledger
from inscp.model.origin import read_origin
from inscp.pretrained import load_model


class Batches(Losses):
    """Keeps what passes through the model: lengths of the documents trained on, and of the held-out ones."""

    def __init__(self) -> None:
        super().__init__()
        self._trained: list[int] = []
        self._held_out: list[int] = []
        self.tokens = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._trained += batch.lengths
        self.tokens += batch.step_tokens * ((batch_idx + 1) % trainer.accumulate_grad_batches == 0)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._held_out += batch.lengths

    @property
    def trained(self) -> Work:
        return Work.of(tuple(self._trained))

    @property
    def held_out(self) -> Work:
        return Work.of(tuple(self._held_out))


def fitted(
    folder: Path, corpus: Path, model: str, ledger: Ledger, resume: Path | None = None, max_steps: int = -1,
    **options: Any,
) -> tuple[Cost | None, Batches]:  # fmt: skip
    learner = module(model, **options)
    data = data_module(corpus, model, validation={"held": str(corpus)}, max_steps=max_steps)
    throughput, batches, provenance = Throughput(), Batches(), Provenance(folder)
    saving = Checkpoints(str(folder / "kept"), every_n_steps=5, keep_last=99)
    exporting = ExportAtEnd(folder / f"model{resume is not None:d}", provenance, saving)
    counting = (throughput, TrainingCost(ledger, throughput), provenance, batches)
    fit(folder, data, *counting, exporting, saving, learner=learner, resume=resume)
    return training_cost(learner.trainer), batches


def test_flops_are_those_of_the_rows_and_a_resumed_training_adds_up(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    ledger = Ledger(prices={"CPU": 1.0})
    whole, seen = fitted(tmp_path, corpus, tiny_model_folder, ledger)
    size = ModelSize.of(load_model(tiny_model_folder, torch.float32))
    assert whole is not None
    assert seen.held_out.tokens > 0
    assert whole.tokens == seen.tokens
    assert whole.flops == pytest.approx(training_flops(size, seen.trained) + forward_flops(size, seen.held_out))
    assert whole.money == pytest.approx(whole.device_hours)
    origin = read_origin(str(tmp_path / "model0"))
    assert origin is not None
    assert Cost(**origin.cost) == whole
    resumed, again = fitted(tmp_path, corpus, tiny_model_folder, ledger, resume=tmp_path / "kept" / "step-00000005")
    assert resumed is not None
    assert again.tokens < seen.tokens
    assert resumed.tokens == whole.tokens
    assert resumed.flops == pytest.approx(whole.flops)


def test_activations_that_are_computed_again_count_again(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    cost, seen = fitted(tmp_path, corpus, tiny_model_folder, Ledger(), max_steps=2, activation_checkpointing="block")
    size = ModelSize.of(load_model(tiny_model_folder, torch.float32))
    assert cost is not None
    expected = training_flops(size, seen.trained, 1.0) + forward_flops(size, seen.held_out)
    assert cost.flops == pytest.approx(expected)


def test_nothing_is_counted_where_it_is_not_wanted(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    cost, _ = fitted(tmp_path, corpus, tiny_model_folder, Ledger(enabled=False), max_steps=1)
    assert cost is None
    assert read_origin(str(tmp_path / "model0")).cost == {}  # type: ignore[union-attr]
