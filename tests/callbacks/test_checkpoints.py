"""Checkpoints are whole, the right ones are kept, and a training goes on from each of them."""

import errno
import json
import math
import os
import resource
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import Losses, data_module, fit, module
from lightning import Callback
from safetensors.torch import load_file, save_file

from inscp.callbacks.checkpoints import Checkpoints
from inscp.errors import UserError
from inscp.model.adapters import LoRA
from inscp.model.card import model_card
from inscp.model.checkpoint import ORIGIN_KEY, complete_checkpoints, read_manifest, read_metadata, step_folder
from inscp.model.origin import Origin, warn_of_other_weights


def fitted(folder: Path, corpus: Path, model: str, *callbacks: Callback, resume: Path | None = None) -> Losses:
    """A training that is measured behind every fourth step."""
    data = data_module(corpus, model, batch_size=2, validation={"held": str(corpus)})
    return fit(folder, data, *callbacks, resume=resume, val_check_interval=4)


def steps(folder: Path) -> list[int]:
    whole, damaged = complete_checkpoints(folder)
    assert not damaged
    assert not list(folder.glob("*.partial"))
    return [int(path.name.removeprefix("step-")) for path in whole]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_last_ones_are_kept(tmp_path: Path, corpus: Path, tiny_model_folder: str, asynchronous: bool) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=3, keep_last=3, asynchronous=asynchronous)
    losses = fitted(tmp_path, corpus, tiny_model_folder, saving)
    assert steps(tmp_path / "kept") == [step for step in sorted(losses.steps, reverse=True) if step % 3 == 0][:3]


class Worsen(Losses):
    """Makes the held-out loss grow by breaking the weights behind step 10, where it had been best."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 10:
            for parameter in pl_module.parameters():
                parameter.data.zero_()


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    for step, loss in enumerate([1.0, math.nan], 1):
        path = step_folder(tmp_path, step)
        path.mkdir()
        (path / "whole.json").write_text(json.dumps({"files": {}, "metric": {"val/held/loss": loss}}), "utf-8")
    saving = Checkpoints(str(tmp_path), keep_last=1, monitor="val/held/loss")
    saving._prune()
    assert steps(tmp_path) == [2, 1]


@pytest.mark.parametrize("every_n_steps", [None, 4])
def test_the_best_is_kept_with_its_value(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, every_n_steps: int | None
) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=every_n_steps, keep_last=1, monitor="val/held/loss")
    losses = fitted(tmp_path, corpus, tiny_model_folder, saving, Worsen())
    assert steps(tmp_path / "kept") == [max(losses.steps) // 4 * 4, 8]
    values = {
        path.name: read_manifest(path)["metric"]["val/held/loss"] for path in complete_checkpoints(tmp_path / "kept")[0]
    }
    assert values["step-00000008"] == min(values.values())


@pytest.mark.parametrize("options", [{}, {"asynchronous": True}, {"monitor": "val/held/loss"}])
def test_every_kind_of_checkpoint_resumes_bit_by_bit(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, options: dict[str, Any]
) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=4, keep_last=99, **options)
    whole = fitted(tmp_path, corpus, tiny_model_folder, saving)
    saving = Checkpoints(str(tmp_path / "again"), every_n_steps=4, keep_last=99, **options)
    resumed = fitted(tmp_path, corpus, tiny_model_folder, saving, resume=tmp_path / "kept" / "step-00000008")
    assert resumed.steps == {step: values for step, values in whole.steps.items() if step > 8}
    assert len(resumed.steps) > 4
    # What the resumed training keeps is what the other one kept, tensor by tensor.
    again, _ = complete_checkpoints(tmp_path / "again")
    assert len(again) > 1
    for path in again:
        for file in path.glob("*.safetensors"):
            found, expected = load_file(file), load_file(tmp_path / "kept" / path.name / file.name)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)


class SmallFilesOnly(Losses):
    """From one step to another the operating system refuses to write files of more than 4 kB."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        small = self.first <= batch_idx + 1 <= self.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if small else hard, hard))


@contextmanager
def file_size_limit_restored() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_reported_and_costs_nothing_that_was_there(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, asynchronous: bool
) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=3, keep_last=1, asynchronous=asynchronous)
    with file_size_limit_restored(), pytest.warns(UserWarning, match="could not be written") as told:
        losses = fitted(tmp_path, corpus, tiny_model_folder, saving, SmallFilesOnly(9, 99))
    messages = [str(warning.message) for warning in told if "could not be written" in str(warning.message)]
    assert len(messages) == len([step for step in losses.steps if step >= 9 and step % 3 == 0]) > 1
    assert "step-00000009 could not be written: [Errno 27] File too large" in messages[0]
    assert f"the last complete one is {tmp_path / 'kept' / 'step-00000006'}; training continues" in messages[0]
    assert steps(tmp_path / "kept") == [6]


def test_a_cut_file_is_found_before_anything_is_read(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    fitted(tmp_path, corpus, tiny_model_folder, Checkpoints(str(tmp_path / "kept"), every_n_steps=3))
    newest, before = complete_checkpoints(tmp_path / "kept")[0]
    shard = max(newest.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    whole, [damage] = complete_checkpoints(tmp_path / "kept")
    assert whole == [before]
    assert damage.where == str(shard)
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        fitted(tmp_path, corpus, tiny_model_folder, Checkpoints(str(tmp_path / "x")), resume=newest)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    fitted(tmp_path, corpus, tiny_model_folder, Checkpoints(str(tmp_path / "kept"), every_n_steps=3))
    [path, _] = complete_checkpoints(tmp_path / "kept")[0]
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".pt", ".json"}
    about = read_metadata(path)
    torch.save(about | {"harm": Harm()}, path / "about.pt")
    mark = json.loads((path / "whole.json").read_text())
    mark["files"]["about.pt"] = (path / "about.pt").stat().st_size
    (path / "whole.json").write_text(json.dumps(mark))
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        fitted(tmp_path, corpus, tiny_model_folder, Checkpoints(str(tmp_path / "x")), resume=path)
    assert not (tmp_path / "harm").exists()


def test_a_damaged_checkpoint_is_written_again_when_the_training_comes_to_it(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    folder = tmp_path / "kept"
    fitted(tmp_path, corpus, tiny_model_folder, Checkpoints(str(folder), every_n_steps=3, keep_last=9))
    whole = complete_checkpoints(folder)[0]
    shard = max(whole[-2].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert len(complete_checkpoints(folder)[1]) == 1
    fitted(
        tmp_path, corpus, tiny_model_folder, Checkpoints(str(folder), every_n_steps=3, keep_last=9), resume=whole[-1]
    )
    assert complete_checkpoints(folder) == (whole, [])


class NoInference(Losses):
    """Looks in which mode validation computes: FSDP2 keeps the buffers of its first forward pass, which may be one."""

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        assert not torch.is_inference_mode_enabled()
        self.seen = True


def test_validation_leaves_no_tensors_that_a_training_could_not_use(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    looking = NoInference()
    fitted(tmp_path, corpus, tiny_model_folder, Checkpoints(str(tmp_path / "kept"), every_n_steps=None), looking)
    assert looking.seen


def test_another_rank_of_the_adapter_is_reported(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    def run(rank: int, resume: Path | None = None) -> None:
        learner = module(tiny_model_folder, adapter=LoRA(rank=rank))
        saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=3)
        fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=3), saving, learner=learner, resume=resume)

    run(2)
    with pytest.raises(UserError, match="of the shape"):
        run(4, tmp_path / "kept" / "step-00000003")


def test_a_metric_that_cannot_be_kept_is_reported_and_the_training_continues(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, values: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("inscp.callbacks.checkpoints.add_to_manifest", full)
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=4, monitor="val/held/loss")
    with pytest.warns(UserWarning, match="measurement cannot be stored in .*No space left"):
        losses = fitted(tmp_path, corpus, tiny_model_folder, saving)
    assert steps(tmp_path / "kept")
    assert max(losses.steps) > 4


def test_the_card_of_a_checkpoint_shows_what_was_measured_after_its_step(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=2, keep_last=99)
    losses = fitted(tmp_path, corpus, tiny_model_folder, saving)
    cards = {int(path.name.removeprefix("step-")): Origin(**read_metadata(path)[ORIGIN_KEY])
             for path in complete_checkpoints(tmp_path / "kept")[0]}  # fmt: skip
    assert {step: origin.training["steps"] for step, origin in cards.items()} == {step: step for step in cards}
    assert {step for step, origin in cards.items() if "after" in origin.held_out["held"]} == set()
    assert "| not measured |" in model_card(cards[2])
    assert max(cards) in (max(losses.steps), max(losses.steps) - 1)


def test_adapters_on_weights_that_have_changed_are_reported(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=1)
    learner = module(str(base), adapter=LoRA(rank=2))
    fit(tmp_path, data_module(corpus, str(base), max_steps=1), saving, learner=learner)
    origin = Origin(**read_metadata(tmp_path / "kept" / "step-00000001")[ORIGIN_KEY])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_weights(origin, str(base))
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, base / "model.safetensors")
    with pytest.warns(UserWarning, match="has changed since this run began"):
        warn_of_other_weights(origin, str(base))
