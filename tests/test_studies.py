"""Every shipped study parses, and each of its arms is a configuration that the command takes which runs it."""

from pathlib import Path

import pytest

from inscp.commands import check_study
from inscp.commands.check_study import check_runs
from inscp.commands.experiment import read_study
from inscp.data.datamodule import InsCPDataModule
from inscp.evaluation.tasks import import_all

ROOT = Path(__file__).parent.parent
STUDIES = sorted(file.parent for file in ROOT.glob("experiments/*/experiment.yaml"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_its_arms_are_configurations_of_the_commands_that_run_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_all()
    monkeypatch.chdir(ROOT)
    # The texts and prompts of most studies are no part of the project.
    monkeypatch.setattr(InsCPDataModule, "require_sources", lambda self: None)
    monkeypatch.setattr(check_study, "require_runnable", lambda tasks, server: None)
    study = read_study(folder)
    assert (folder / "README.md").is_file()
    assert {run.arm for run in study.runs()} == set(study.arms)
    runs = study.runs()
    check_runs(runs)
    known = {run.name: (run.fingerprint, run.measure) for run in study.runs()}
    assert {run.name: (run.fingerprint, run.measure) for run in runs} == known  # what is read is not changed
