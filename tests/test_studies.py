"""Every shipped study parses, and each of its trainings is a configuration that `fit` takes."""

from pathlib import Path

import pytest
import yaml

from inscp.commands.evaluate import evaluate
from inscp.commands.experiment import read_study
from inscp.commands.fit import InsCPCLI
from inscp.commands.merge import merge
from inscp.commands.parser import Parser
from inscp.evaluation.tasks import import_all

ROOT = Path(__file__).parent.parent
STUDIES = sorted(file.parent for file in ROOT.glob("experiments/*/experiment.yaml"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_its_arms_are_configurations_of_the_commands_that_run_them(
    folder: Path, tiny_model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_all()
    monkeypatch.chdir(ROOT)
    study = read_study(folder)
    assert (folder / "README.md").is_file()
    first = {run.arm: run for run in reversed(study.runs())}
    assert set(first) == set(study.arms)
    for number, run in enumerate(first.values()):
        file = tmp_path / f"{number}.yaml"
        if run.fit is not None:
            file.write_text(yaml.safe_dump(run.fit), "utf-8")
            monkeypatch.setattr("sys.argv", ["inscp", "--config", str(file), "--model.pretrained", tiny_model_folder])
            cli = InsCPCLI(run=False)
            assert cli.datamodule.language == run.language
            assert cli.datamodule.token_budget == run.budget
        if run.merge is not None:
            file.write_text(yaml.safe_dump(run.merge), "utf-8")
            _parsed(merge, file, "--model=x", "--out=y")
        file.write_text(yaml.safe_dump(run.evaluate), "utf-8")
        assert _parsed(evaluate, file, "--model=x").tasks


def _parsed(function, file: Path, *given: str):  # type: ignore[no-untyped-def]
    parser = Parser()
    parser.add_function_arguments(function)
    parser.add_argument("--config", action="config")
    return parser.instantiate(parser.parse_args([f"--config={file}", *given]))
