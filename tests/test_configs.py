"""Every shipped configuration parses and makes its objects, with a tiny model in the real one's place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inscp.__main__ import main
from inscp.commands.evaluate import evaluate
from inscp.commands.fit import InsCPCLI
from inscp.commands.parser import Parser
from inscp.commands.score import score
from inscp.data.tagging import InsCPTagger
from inscp.evaluation.task import Task
from inscp.evaluation.tasks import import_all
from inscp.model.strategies import FSDP2, OneDevice

FOLDER = Path(__file__).parent.parent / "configs"
RECIPE = FOLDER / "recipe.yaml"
TEMPLATE = FOLDER / "my_language.yaml"
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - {RECIPE, TEMPLATE})
TRAINERS = sorted((FOLDER / "trainer").glob("*.yaml"))
PARTS = sorted(path for part in ("model", "data") for path in (FOLDER / part).glob("*.yaml"))


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


def test_the_recipe_goes_on_top_of_every_training(tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ["--model.pretrained", tiny_model_folder, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    for config in CONFIGS:
        monkeypatch.setattr("sys.argv", ["inscp", "--config", str(config), "--config", str(RECIPE), *here])
        cli = InsCPCLI(run=False)
        data, how = cli.datamodule, cli.model.distillation
        assert isinstance(data.tagger, InsCPTagger)
        assert (data.tagger.loss, data.document_length, how and how.weight) == ("response", 160, 5)
        assert len(data.tagger.user) == 8
        assert data.replay is not None
        assert data.replay.share == 0.2


def test_the_template_trains_on_files_of_the_names_that_stand_in_it(
    tiny_model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = '{"text": "Helsingin keskustassa on paljon kauppoja ja ravintoloita, joissa voi syödä hyvin."}\n'
    Path("my_texts.jsonl").write_text(text * 20, "utf-8")
    Path("my_held_out.jsonl").write_text(text, "utf-8")
    Path("my_prompts.jsonl").write_text('{"fi": "Mikä on meri?", "en": "What is the sea?"}\n', "utf-8")
    asked = ["--before_after.max_new_tokens", "4", "--trainer.max_steps", "1"]
    assert main(["fit", "--config", str(TEMPLATE), "--model.pretrained", tiny_model_folder, *asked]) == 0
    told = capsys.readouterr()
    assert "warning" not in told.err
    assert all(part in told.out for part in ("fi prompts", "en prompts", "fi perplexity"))


@pytest.mark.parametrize("path", TRAINERS, ids=lambda path: path.stem)
def test_a_trainer_part_goes_with_every_training(
    path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ["--model.pretrained", tiny_model_folder, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    for config in CONFIGS:
        monkeypatch.setattr("sys.argv", ["inscp", "--config", str(config), "--config", str(path), *here])
        cli = InsCPCLI(run=False)
        given = yaml.safe_load(path.read_text("utf-8"))["trainer"]["strategy"]
        options = given["init_args"] if isinstance(given, dict) else {}
        strategy = cli.trainer.strategy
        assert type(strategy) is (FSDP2 if options else OneDevice)
        for name, value in options.items():
            assert getattr(strategy, name) == value


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_a_part_of_model_or_data_makes_what_it_names(
    path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = yaml.safe_load(path.read_text("utf-8"))
    given = {(section, name): values for section, keys in sections.items() for name, values in keys.items()}
    [((section, name), values)] = [(key, values) for key, values in given.items() if "share" in values]
    share = ["--model.pretrained", tiny_model_folder, f"--{section}.{name}.share", "0.4"]
    monkeypatch.setattr(
        "sys.argv", ["inscp", "--config", str(FOLDER / "quickstart.yaml"), "--config", str(path), *share]
    )
    cli = InsCPCLI(run=False)
    made = getattr({"model": cli.model, "data": cli.datamodule}[section], name)
    assert made.share == 0.4
    assert made.sources == values["sources"]
    assert type(made.tagger).__name__ == values["tagger"]["class_path"].rpartition(".")[2]
    assert (cli.model.distillation is None) == (("model", "distillation") not in given)


def test_nodes_and_gpus_are_what_the_names_say() -> None:
    layouts = {path.stem: yaml.safe_load(path.read_text("utf-8"))["trainer"] for path in TRAINERS}
    sizes = {name: (layout.get("num_nodes", 1), layout["devices"]) for name, layout in layouts.items()}
    assert sizes == {"cpu": (1, 1), "one_gpu": (1, 1), "fsdp_8gpu": (1, 8), "multi_node": (2, 8)}


@pytest.mark.parametrize("command", [evaluate, score])
def test_prices_go_with_every_command_that_computes(
    command: Callable[..., None], tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = FOLDER / "cost" / "cloud.yaml"
    parser = Parser()
    parser.add_function_arguments(command)
    parser.add_argument("--config", action="config")
    data = ["--data=x"] if command is score else ["--tasks={}"]
    given = parser.instantiate(parser.parse_args([f"--config={prices}", "--model=x", "--out=x", *data]))
    assert given.cost.price("NVIDIA H100 80GB HBM3") == 2.5
    here = ["--model.pretrained", tiny_model_folder, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    monkeypatch.setattr("sys.argv", ["inscp", "--config", str(CONFIGS[0]), "--config", str(prices), *here])
    assert InsCPCLI(run=False).config_init.cost == given.cost


@pytest.mark.parametrize("path", sorted((FOLDER / "evaluate").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_evaluation_s_tasks_are_classes_that_take_what_is_given(path: Path) -> None:
    import_all()
    parser = Parser()
    parser.add_function_arguments(evaluate)
    parser.add_argument("--config", action="config")
    given = parser.instantiate(parser.parse_args([f"--config={path}", "--model=x"]))
    assert given.tasks
    assert all(isinstance(task, Task) and task.source and task.licence for task in given.tasks.values())
