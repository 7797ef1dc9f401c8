"""Every shipped configuration parses and makes its objects, with a tiny model in the real one's place."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from inscp.commands.fit import InsCPCLI

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def made(path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> InsCPCLI:
    here = ["--model.pretrained", model, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    monkeypatch.setattr("sys.argv", ["inscp", "--config", str(path), *here])
    return InsCPCLI(run=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_makes_model_data_and_trainer(path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = made(path, tiny_model_folder, monkeypatch)
    given = yaml.safe_load(path.read_text("utf-8"))
    assert cli.model.optimizer.learning_rate == given["model"]["optimizer"]["learning_rate"]
    assert cli.datamodule.token_budget == given["data"]["token_budget"]
    assert cli.datamodule.pretrained == tiny_model_folder
    assert len(cli.datamodule.train_sources) == len(given["data"]["train"])
    assert type(cli.datamodule.tagger).__name__ == given["data"]["tagger"]["class_path"].rpartition(".")[2]


def test_the_two_quickstarts_differ_in_the_tagger_alone() -> None:
    def values(name: str) -> dict[str, Any]:
        path = next(path for path in CONFIGS if path.stem == name)
        return yaml.safe_load(path.read_text("utf-8"))

    ours, plain = values("quickstart"), values("quickstart_cp")
    assert ours["data"].pop("tagger") != plain["data"].pop("tagger")
    assert ours == plain


def test_the_full_scale_configurations_shard_over_eight_gpus() -> None:
    paths = [path for path in CONFIGS if path.stem.startswith("llama3")]
    assert len(paths) == 2
    for path in paths:
        trainer = yaml.safe_load(path.read_text("utf-8"))["trainer"]
        strategy = trainer["strategy"]["init_args"]
        assert (strategy["data_parallel_size"], strategy["tensor_parallel_size"]) == (trainer["devices"], 1)
