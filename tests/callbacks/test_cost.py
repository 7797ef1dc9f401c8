"""What a training costs is counted, adds up where it goes on, and goes with the exported model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import Losses, data_module, module, trainer, write_corpus

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.cost import TrainingCost, training_cost
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance
from inscp.callbacks.throughput import Throughput
from inscp.cost.flops import ModelSize, Work, forward_flops, training_flops
from inscp.cost.ledger import Cost, Ledger
from inscp.model.module import InsCPModule
from inscp.model.origin import read_origin
from inscp.pretrained import load_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


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


def fit(folder: Path, corpus: Path, model: str, ledger: Ledger, **options: Any) -> tuple[Cost | None, Batches]:
    resume, learner = options.pop("resume", None), options.pop("learner", None) or module(model)
    data = data_module(corpus, model, validation={"held": str(corpus)}, max_steps=options.pop("max_steps", -1))
    throughput, batches, provenance = Throughput(), Batches(), Provenance(folder)
    saving = Checkpoints(str(folder / "kept"), every_n_steps=5, keep_last=99)
    counting = [throughput, TrainingCost(ledger, throughput), provenance, batches]
    callbacks = [*counting, ExportAtEnd(folder / f"model{resume is not None:d}", provenance, saving), saving]
    run = trainer(folder, callbacks=callbacks, enable_checkpointing=True, **options)
    run.fit(learner, datamodule=data, ckpt_path=resume, weights_only=True)
    return training_cost(run), batches


def test_flops_are_those_of_the_rows_and_a_resumed_training_adds_up(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    ledger = Ledger(prices={"CPU": 1.0})
    whole, seen = fit(tmp_path, corpus, tiny_model_folder, ledger)
    size = ModelSize.of(load_model(tiny_model_folder, torch.float32))
    assert whole is not None
    assert seen.held_out.tokens > 0
    assert whole.tokens == seen.tokens
    assert whole.flops == pytest.approx(training_flops(size, seen.trained) + forward_flops(size, seen.held_out))
    assert whole.money == pytest.approx(whole.device_hours)
    origin = read_origin(str(tmp_path / "model0"))
    assert origin is not None
    assert Cost(**origin.cost) == whole
    resumed, again = fit(tmp_path, corpus, tiny_model_folder, ledger, resume=str(tmp_path / "kept" / "step-00000005"))
    assert resumed is not None
    assert again.tokens < seen.tokens
    assert resumed.tokens == whole.tokens
    assert resumed.flops == pytest.approx(whole.flops)


def test_activations_that_are_computed_again_count_again(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    learner: InsCPModule = module(tiny_model_folder, activation_checkpointing="block")
    cost, seen = fit(tmp_path, corpus, tiny_model_folder, Ledger(), learner=learner, max_steps=2)
    size = ModelSize.of(load_model(tiny_model_folder, torch.float32))
    assert cost is not None
    expected = training_flops(size, seen.trained, 1.0) + forward_flops(size, seen.held_out)
    assert cost.flops == pytest.approx(expected)


def test_nothing_is_counted_where_it_is_not_wanted(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    cost, _ = fit(tmp_path, corpus, tiny_model_folder, Ledger(enabled=False), max_steps=1)
    assert cost is None
    assert read_origin(str(tmp_path / "model0")).cost == {}  # type: ignore[union-attr]
