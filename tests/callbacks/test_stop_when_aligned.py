"""A training ends when the model answers in the language and gains no more, or when it forgets another one."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from corpus import Losses, data_module, fit, module
from safetensors.torch import load_file

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance
from inscp.callbacks.stop_when_aligned import Measures, StopWhenAligned, is_flat
from inscp.callbacks.throughput import Throughput
from inscp.errors import UserError
from inscp.evaluation.answers import AlignmentScorer
from inscp.model.origin import read_origin
from inscp.records import Generation


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"en": f"What is {i}?", "fi": f"Mikä on {i}?"}) for i in range(2)), "utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inscp.callbacks.throughput.matrix_rate", lambda *_: 1.0)


def asking(prompts: str, **options: Any) -> StopWhenAligned:
    fixed = {"prompts": prompts, "languages": ["fi", "en"], "every_n_tokens": 200, "max_new_tokens": 4}
    return StopWhenAligned(**(fixed | options))


def fitted(
    folder: Path, corpus: Path, model: str, *callbacks: StopWhenAligned | Checkpoints, resume: Path | None = None,
    precision: str = "32-true", **options: Any,
) -> Losses:  # fmt: skip
    """A training that exports its model."""
    folder.mkdir(exist_ok=True)
    for callback in callbacks:
        if isinstance(callback, StopWhenAligned):
            callback.folder = folder
    provenance = Provenance(folder)
    exporting = ExportAtEnd(folder / "model", provenance, Checkpoints(str(folder / "kept")))
    data = data_module(corpus, model, validation={"held": str(corpus)})
    learner = module(model, **options)
    return fit(folder, data, Throughput(), provenance, *callbacks, exporting,
               learner=learner, resume=resume, precision=precision)  # fmt: skip


def answers(monkeypatch: pytest.MonkeyPatch, *measured: dict[str, bool]) -> None:
    """The n-th measurement of the language that is taught finds the n-th of these, of English all is well."""
    taught = iter(measured)

    def shares(_: AlignmentScorer, answers: Sequence[Generation], language: str) -> dict[str, float]:
        found = {"in_language": 1.0, "in_language_if_sound": 1.0, "ended": 1.0}
        return found if language == "en" else found | {name: float(value) for name, value in next(taught).items()}

    monkeypatch.setattr(AlignmentScorer, "shares", shares)


def test_it_ends_when_both_targets_are_reached_and_nothing_is_gained(
    tmp_path: Path, corpus: Path, prompts: str, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answers(monkeypatch, {"ended": False}, {"in_language_if_sound": False}, {}, {}, {}, {}, {})
    losses = fitted(tmp_path, corpus, tiny_model_folder, asking(prompts, patience=2))
    found = json.loads((tmp_path / "alignment.json").read_text("utf-8"))
    tokens = [one["tokens"] for one in found["history"]]
    # Alignment was best at the first, ended turns at the second; the third and fourth gain nothing.
    assert [count // 200 for count in tokens] == [1, 2, 3, 4]
    assert found["history"][-1]["step"] == max(losses.steps)
    assert found["history"][0]["measures"]["fi"]["ended"] == 0.0
    assert found["stopped"].startswith("fi has reached its targets and plateaued (100% of well-formed answers")
    assert f"training stops after {tokens[-1]:,} tokens: fi has reached its targets" in capsys.readouterr().err
    origin = read_origin(str(tmp_path / "model"))
    assert origin is not None
    assert origin.training["steps"] == max(losses.steps)
    assert origin.held_out["held"]["after"] < origin.held_out["held"]["before"]


def test_it_ends_when_another_language_is_forgotten_and_keeps_the_model(
    tmp_path: Path, corpus: Path, prompts: str, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: list[str] = []

    @contextmanager
    def paused(_: Any) -> Iterator[None]:
        clock.append("stops")
        yield
        clock.append("goes on")

    monkeypatch.setattr("inscp.callbacks.stop_when_aligned.clock_paused", paused)
    losses = fitted(tmp_path, corpus, tiny_model_folder, asking(prompts))  # a random model answers in no language
    assert clock == ["stops", "goes on"], "while it is asked"
    found = json.loads((tmp_path / "alignment.json").read_text("utf-8"))
    assert found["stopped"] == "only 0% of en prompts are answered in en, below the floor of 90%"
    assert max(losses.steps) == found["history"][-1]["step"]
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"ema_decay": 0.9, "activation_checkpointing": "block"}],
    ids=["bf16_copies", "average"],
)
def test_asking_changes_nothing_in_the_training(
    tmp_path: Path, corpus: Path, prompts: str, tiny_model_folder: str, options: dict[str, Any]
) -> None:
    model, options = dropping_out(tiny_model_folder, tmp_path), options | {"attn_implementation": "eager"}
    plain = fitted(tmp_path / "plain", corpus, model, **options)
    asked = fitted(tmp_path / "asked", corpus, model, asking(prompts, every_n_tokens=700, retention=0.0), **options)
    history = json.loads((tmp_path / "asked" / "alignment.json").read_text("utf-8"))["history"]
    assert len(history) == 3
    assert asked.steps == plain.steps


def dropping_out(model: str, folder: Path) -> str:
    """The same model with dropout in its attention."""
    copy = folder / "dropping"
    copy.mkdir()
    for file in Path(model).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    return str(copy)


def test_a_resumed_training_knows_what_was_measured(
    tmp_path: Path, corpus: Path, prompts: str, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, *[{}] * 20)
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=1, keep_last=99)
    whole = fitted(tmp_path / "whole", corpus, tiny_model_folder, asking(prompts), saving)
    expected = (tmp_path / "whole" / "alignment.json").read_text("utf-8")
    middle = json.loads(expected)["history"][1]["step"]
    answers(monkeypatch, *[{}] * 20)
    again = Checkpoints(str(tmp_path / "again"))
    resumed = fitted(tmp_path / "resumed", corpus, tiny_model_folder, asking(prompts), again,
                     resume=tmp_path / "kept" / f"step-{middle:08}")  # fmt: skip
    assert min(resumed.steps) == middle + 1
    assert max(resumed.steps) == max(whole.steps)
    assert (tmp_path / "resumed" / "alignment.json").read_text("utf-8") == expected


def test_flat_is_no_gain_beyond_the_tolerance() -> None:
    assert not is_flat([0.9, 0.9], 2, 0.02)  # nothing to compare with
    assert is_flat([0.9, 0.91, 0.92], 2, 0.02)
    assert not is_flat([0.9, 0.91, 0.93], 2, 0.02)
    assert is_flat([0.5, 0.9, 0.8, 0.7], 2, 0.02)
    assert is_flat([0.9, 0.5, 0.8, 0.7], 2, 0.02)
    assert not is_flat([0.9, 0.93, 0.9], 2, 0.02)


def ends(callback: StopWhenAligned, *measured: Measures) -> bool:
    """Whether a training with these measurements behind it ends."""
    callback.load_state_dict({"history": [{"measures": of} for of in measured]})
    trainer: Any = SimpleNamespace(should_stop=False)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    return bool(trainer.should_stop)


def test_what_just_reaches_a_target_or_the_floor_is_enough(prompts: str) -> None:
    just = {tag: {"in_language_if_sound": 0.95, "ended": 0.5, "in_language": 0.9} for tag in ("fi", "en")}
    assert not ends(asking(prompts, patience=1), just)
    assert ends(asking(prompts, patience=1), just, just)


@pytest.mark.parametrize(("options", "where"), [({"languages": None}, "stop_when_aligned: languages"),
                                                ({"patience": 0}, "stop_when_aligned.patience"),
                                                ({"every_n_tokens": 0}, "stop_when_aligned.every_n")])  # fmt: skip
def test_what_cannot_be_is_reported(prompts: str, options: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=where):
        asking(prompts, **options)


class Answering(Losses):
    """Looks at the model inside and outside of `answering`, at the third step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != 2:
            return
        weights, averages = pl_module.weights, pl_module.average.tensors
        trained, average = ({name: w.detach().clone() for name, w in of.items()} for of in (weights, averages))
        with pl_module.generation_mode() as model:
            assert not model.training
            assert all(torch.equal(weights[name], average[name]) for name in weights)
        assert model.training
        assert all(torch.equal(weights[name], trained[name]) for name in weights)
        assert any(not torch.equal(trained[name], average[name]) for name in weights)
        self.looked = True


def test_the_average_is_asked_where_it_is_what_is_exported(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    looking = Answering()
    data = data_module(corpus, tiny_model_folder, max_steps=3)
    fit(tmp_path, data, looking, learner=module(tiny_model_folder, ema_decay=0.9))
    assert looking.looked


def test_what_a_checkpoint_keeps_does_not_grow_while_it_is_written() -> None:
    callback = StopWhenAligned()
    kept = callback.state_dict()
    callback._history.append({"step": 1})
    assert kept == {"history": []}


def test_what_had_ended_ends_at_once_when_it_is_resumed(
    tmp_path: Path, corpus: Path, prompts: str, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, *[{}] * 20)
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=1)
    whole = fitted(tmp_path / "whole", corpus, tiny_model_folder, asking(prompts), saving)
    again = Checkpoints(str(tmp_path / "again"))
    resumed = fitted(tmp_path / "resumed", corpus, tiny_model_folder, asking(prompts), again,
                     resume=tmp_path / "kept" / f"step-{max(whole.steps):08}")  # fmt: skip
    assert not resumed.steps
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_log_that_cannot_be_written_costs_no_training(
    tmp_path: Path, corpus: Path, prompts: str, tiny_model_folder: str
) -> None:
    (tmp_path / "alignment.json").mkdir(parents=True)  # where a file should be
    with pytest.warns(UserWarning, match="alignment.json cannot be written"):
        losses = fitted(tmp_path, corpus, tiny_model_folder, asking(prompts, retention=0.0))
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert max(losses.steps) > 1


def test_what_was_measured_in_other_languages_says_nothing(prompts: str) -> None:
    measures = {"zh-TW": {"in_language": 1.0}, "en": {"in_language": 1.0}}
    asked = asking(prompts)
    asked.load_state_dict({"history": [{"step": 1, "tokens": 200, "measures": measures}]})
    assert asked.state_dict() == {"history": []}
    silent = StopWhenAligned()
    silent.load_state_dict({"history": [{"step": 1, "tokens": 200, "measures": measures}]})
    assert silent.state_dict()["history"], "which is kept for when it asks again"
