"""What a training is told before it begins."""

import json
import sys
import warnings
from inspect import signature
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from inscp.__main__ import main
from inscp.callbacks.checkpoints import Checkpoints
from inscp.commands.checks import require_supported, require_texts, warn_of_languages, warn_of_precision
from inscp.data.datamodule import InsCPDataModule
from inscp.errors import UserError
from inscp.model.distillation import Distillation
from inscp.model.module import InsCPModule
from inscp.model.shield import Shield
from inscp.text.language import primary

TRAINER = {name: given.default for name, given in signature(Trainer).parameters.items()} | {"max_epochs": 1}


def offered(folder: Path, monitor: str = "val/held/loss", **of_model: object) -> tuple[InsCPModule, InsCPDataModule]:
    (folder / "text.jsonl").write_text('{"text": "The river runs."}', "utf-8")
    held_out = {"held": str(folder / "text.jsonl")}
    data = InsCPDataModule(str(folder / "text.jsonl"), validation=held_out)  # type: ignore[arg-type]
    module = InsCPModule("of no matter", **of_model)  # type: ignore[arg-type]
    require_supported(TRAINER, module, data, Checkpoints(monitor=monitor))
    return module, data


def test_what_can_be_is_offered(tmp_path: Path) -> None:
    require_texts(*offered(tmp_path))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"distillation": Distillation()}, r"model\.distillation: it needs replayed rows"),
        ({"monitor": "val/hold/loss"}, r"monitor: val/hold/loss is not measured\. Choose from: val/held/loss"),
        ({"shield": Shield("nowhere.jsonl")}, r"nowhere\.jsonl: no such file"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, object], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        require_texts(*offered(tmp_path, **asked))  # type: ignore[arg-type]


def test_texts_may_be_somewhere_else_where_nothing_is_trained(tmp_path: Path) -> None:
    offered(tmp_path, shield=Shield("nowhere.jsonl"))


@pytest.mark.parametrize("language", ["zh-TW", "und"])
def test_languages_are_distinguished_only_where_something_identifies_them(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Helsingin keskustassa on paljon kauppoja."}', "utf-8")
    data = InsCPDataModule(str(tmp_path / "a.jsonl"), language=language)
    if language == "und":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_languages(data)
        return
    with pytest.warns(UserWarning, match="1 of 1 texts of data.train look like fi"):
        warn_of_languages(data)
    primary.cache_clear()
    monkeypatch.setitem(sys.modules, "langcodes", None)  # as without the extra `eval`
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_languages(data)


def test_a_language_that_the_identifier_knows_badly_is_reported(tmp_path: Path) -> None:
    sentences = [
        "Ninapenda kusoma vitabu vya historia.",
        "Simba ni mnyama mkubwa.",
        "Maji huchemka kwa nyuzi mia moja.",
    ]
    records = [json.dumps({"text": sentence}) for sentence in sentences * 4]
    (tmp_path / "a.jsonl").write_text("\n".join(records), "utf-8")
    with pytest.warns(UserWarning, match=r"only \d of 12 texts of data.train are recognised as sw; .*glotlid"):
        warn_of_languages(InsCPDataModule(str(tmp_path / "a.jsonl"), language="sw"))


def test_a_device_that_is_full_is_reported_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr("inscp.commands.doctor.report", full)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "error: the device ran out of memory (CUDA out of memory. Tried to allocate 2.00 GiB). Lower the batch size or "
        "row length, or use more devices; `doctor` estimates what a run needs.\n"
    )


def test_bf16_where_the_hardware_does_not_multiply_in_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for multiplies, precision in ((True, "bf16-mixed"), (False, "32-true"), (False, None)):
        monkeypatch.setattr("inscp.commands.checks.has_fast_bf16", lambda it=multiplies: it)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_precision(precision)
    with pytest.warns(UserWarning, match="set trainer.precision to 32-true"):
        warn_of_precision("bf16-mixed")
