"""Training: every token weighs the same, runs resume exactly, and a broken loss changes nothing."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import Losses, data_module, fit, module, trainer, write_corpus
from transformers import PreTrainedModel

from inscp.callbacks.checkpoints import Checkpoints
from inscp.errors import RunError, UserError
from inscp.model.loss import NextTokenLoss
from inscp.model.module import InsCPModule
from inscp.model.optim import Optimizer
from inscp.pretrained import load_model
from inscp.records import IGNORED


def saving(folder: Path) -> Checkpoints:
    return Checkpoints(str(folder / "kept"), every_n_steps=3, keep_last=99)


def test_the_trajectory_is_the_same_for_1_x_8_and_8_x_1_accumulation(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    wide = fit(tmp_path, data_module(corpus, tiny_model_folder, epochs=3.0, batch_size=8))
    long = fit(tmp_path, data_module(corpus, tiny_model_folder, epochs=3.0), accumulate_grad_batches=8)
    assert len(wide.steps) >= 4
    assert wide.steps.keys() == long.steps.keys()
    for step, values in wide.steps.items():
        assert long.steps[step] == pytest.approx(values, rel=2e-4)


def test_micro_batches_hold_unequal_numbers_of_targets(corpus: Path, tiny_model_folder: str) -> None:
    """Without this the test above could not tell token weights from micro-batch weights."""
    data = data_module(corpus, tiny_model_folder)
    data.setup("fit")
    counts = data.mixture.rows.n_targets
    assert counts.max() > 1.3 * counts.min()


def test_the_loss_falls_and_the_first_one_is_the_models_own(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    losses = fit(tmp_path, data_module(corpus, tiny_model_folder, epochs=4.0, batch_size=4))
    values = [loss for loss, _, _ in losses.steps.values()]
    vocabulary = load_model(tiny_model_folder, torch.float32).config.vocab_size
    uniform = torch.tensor(float(vocabulary)).log().item()
    assert values[0] == pytest.approx(uniform, abs=0.2)  # a random model knows nothing
    assert values[-1] < values[0] - 1


def test_targets_may_count_by_their_probability(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    data = data_module(corpus, tiny_model_folder, max_steps=1)
    learner = module(tiny_model_folder, token_weights="probability")
    weighted = fit(tmp_path, data, learner=learner).steps[1][0]
    data.setup("fit")
    loss = NextTokenLoss(load_model(tiny_model_folder, torch.float32))
    [batch] = islice(data.train_dataloader(), 1)
    nlls = loss(batch, per_target=True)
    assert weighted == pytest.approx(float((nlls * (-nlls).exp()).mean()), rel=1e-4)
    assert weighted < float(nlls.mean()) / 10


def test_a_resumed_run_of_accumulated_steps_and_two_passes_equals_the_uninterrupted_one_bit_by_bit(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    def fitted(*callbacks: Checkpoints, resume: Path | None = None) -> dict[int, tuple[float, ...]]:
        data = data_module(corpus, tiny_model_folder, epochs=1.5)
        return fit(tmp_path, data, *callbacks, resume=resume, accumulate_grad_batches=2).steps

    whole = fitted(saving(tmp_path))
    resumed = fitted(resume=tmp_path / "kept" / "step-00000003")
    assert min(resumed) == 4
    assert resumed == {step: values for step, values in whole.items() if step > 3}
    assert len(resumed) > 3


def test_weights_that_no_gradient_has_reached_do_not_keep_a_run_from_resuming(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_an_idle_matrix(learner: InsCPModule, *args: Any) -> PreTrainedModel:
        model = bare_model(learner, *args)
        model.model.idle = torch.nn.Linear(2, 2)
        return model

    bare_model = InsCPModule.bare_model
    monkeypatch.setattr(InsCPModule, "bare_model", with_an_idle_matrix)
    whole = fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=8), saving(tmp_path))
    checkpoint = tmp_path / "kept" / "step-00000003"
    resumed = fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=8), resume=checkpoint)
    assert resumed.steps == {step: values for step, values in whole.steps.items() if step > 3}


def test_a_new_learning_rate_counts_from_the_first_step_that_is_trained_with_it(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    whole = fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=8), saving(tmp_path))
    tenth = InsCPModule(tiny_model_folder, Optimizer(learning_rate=1e-3, warmup=0.0, schedule="linear"))
    resumed = fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=8), learner=tenth,
                  resume=tmp_path / "kept" / "step-00000003")  # fmt: skip
    expected = {step: pytest.approx(rate / 10) for step, (_, rate, _) in whole.steps.items() if step > 3}
    assert {step: rate for step, (_, rate, _) in resumed.steps.items()} == expected
    assert len(expected) > 3


def test_resuming_with_other_data_is_refused_and_can_be_forced(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=3), saving(tmp_path))
    other, checkpoint = write_corpus(tmp_path, records=30), tmp_path / "kept" / "step-00000003"
    with pytest.raises(UserError, match="data fingerprint"):
        fit(tmp_path, data_module(other, tiny_model_folder), resume=checkpoint)
    resumed = fit(tmp_path, data_module(other, tiny_model_folder, force_resume=True), resume=checkpoint)
    assert min(resumed.steps) == 4


@pytest.mark.parametrize(("before", "after"), [((1, 1), (2, 1)), ((2, 1), (1, 1)), ((1, 2), (1, 3)), ((2, 2), (1, 4))])
def test_resuming_with_steps_of_another_size_resumes_at_the_next_unseen_row(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Batch size x accumulation; the rows that all steps together have seen are those of one pass, each once."""
    seen: list[list[bytes]] = []
    for (batch_size, accumulate), path in ((before, None), (after, tmp_path / "kept" / "step-00000003")):
        rows = Rows()
        data = data_module(corpus, tiny_model_folder, batch_size=batch_size, max_steps=-1 if path else 3)
        fit(tmp_path, data, rows, saving(tmp_path), resume=path, accumulate_grad_batches=accumulate)
        seen.append(rows.seen)
    data = data_module(corpus, tiny_model_folder)
    data.setup("fit")
    rows = data.mixture.rows.table.column("input_ids")
    assert len(seen[0]) == 3 * before[0] * before[1]
    assert sorted(seen[0] + seen[1]) == sorted(row.values.to_numpy().tobytes() for row in rows)


class Rows(Losses):
    """Keeps the rows that the training takes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        is_filled = (batch.targets >= 0).any(1)
        self.seen += [row.numpy().astype("int32").tobytes() for row in batch.input_ids[is_filled]]


def test_max_steps_ends_the_training_with_a_validation(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    learner = module(tiny_model_folder)
    data = data_module(corpus, tiny_model_folder, validation={"held": str(corpus)}, max_steps=3)
    losses = fit(tmp_path, data, learner=learner)
    assert list(losses.steps) == [1, 2, 3]
    assert losses.steps[3][1] < losses.steps[1][1]  # the schedule knows the end
    assert learner.held_out.keys() == {"held"}


def test_a_token_budget_decides_the_length_and_repeats_the_data(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    data = data_module(corpus, tiny_model_folder, token_budget=5000, batch_size=2)
    data.setup("fit")
    tokens = data.report.tokens
    assert tokens < 5000
    losses = fit(tmp_path, data)
    rows = -(-5000 // (tokens / data.report.rows))
    assert len(losses.steps) == -(-rows // 2)


class BreakWeights(Losses):
    """Makes the model's output infinite before the third step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            with torch.no_grad():
                pl_module.model.get_input_embeddings().weight[:] = float("inf")
            self.before = [p.detach().clone() for p in pl_module.parameters()]
            self.module = pl_module


def test_an_infinite_loss_stops_the_run_names_the_last_checkpoint_and_changes_no_weight(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    breaking, saving = BreakWeights(), Checkpoints(str(tmp_path / "kept"), every_n_steps=1)
    with pytest.raises(RunError, match=r"loss became nan at step 2.*step-00000002"):
        fit(tmp_path, data_module(corpus, tiny_model_folder), breaking, saving)
    for before, after in zip(breaking.before, breaking.module.parameters(), strict=True):
        assert torch.equal(before, after)


def test_held_out_perplexity_equals_that_of_each_document_alone(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    data = data_module(corpus, tiny_model_folder, validation={"held": str(corpus)}, batch_size=4)
    learner = module(tiny_model_folder)
    [metrics] = trainer(tmp_path).validate(learner, datamodule=data, verbose=False)
    pipeline = data.pipeline(data.validation["held"], data.validation_tagger)
    total, n_targets = 0.0, 0
    for sequence in pipeline.sequences():
        ids = torch.tensor(sequence.input_ids[None], dtype=torch.long)
        labels = torch.tensor(sequence.labels[None], dtype=torch.long)
        count = int((labels[:, 1:] != IGNORED).sum())
        total += learner.model(input_ids=ids, labels=labels).loss.item() * count
        n_targets += count
    assert metrics["val/held/loss"] == pytest.approx(total / n_targets, rel=1e-5)
    assert metrics["val/held/perplexity"] == pytest.approx(torch.tensor(total / n_targets).exp().item(), rel=1e-4)


def saved_numbers(loss: torch.nn.Module, batch: Any) -> int:
    """How many numbers the forward pass keeps for the backward pass."""
    count = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(batch)
    return count


@pytest.mark.parametrize("how", ["block", 2, "selective"])
def test_activation_checkpointing_changes_no_number(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, how: Any
) -> None:
    results, saved = [], []
    for activation_checkpointing in ("none", how):
        learner = module(tiny_model_folder, activation_checkpointing=activation_checkpointing)
        data = data_module(corpus, tiny_model_folder, batch_size=4)
        results.append(fit(tmp_path, data, learner=learner).steps)
        saved.append(saved_numbers(learner.loss, next(iter(data.train_dataloader()))))
    assert results[0] == results[1]
    assert saved[1] < 0.9 * saved[0]
