"""Every shipped study parses, and each of its arms is a configuration that the command takes which runs it."""

from pathlib import Path

import pytest

from inscp.commands.check_study import check_goals, check_runs
from inscp.commands.study_file import read_study
from inscp.evaluation.tasks import import_all
from inscp.experiment import configuration

ROOT = Path(__file__).parent.parent
STUDIES = sorted(file.parent for file in ROOT.glob("experiments/*/experiment.yaml"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_its_arms_are_configurations_of_the_commands_that_run_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_all()
    monkeypatch.chdir(ROOT)
    study = read_study(folder)
    assert (folder / "README.md").is_file()
    assert {run.arm for run in study.runs()} == set(study.arms)
    runs = study.runs()
    check_goals(study.goals, runs)
    check_runs(runs)  # the texts and prompts of most are no part of the project
    known = {run.name: (run.fingerprint, run.measure) for run in study.runs()}
    assert {run.name: (run.fingerprint, run.measure) for run in runs} == known  # what is read is not changed


def test_a_folder_that_is_called_as_a_value_which_is_no_path_changes_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_all()
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)

    def digests() -> set[tuple[str, str]]:
        configuration._contents.cache_clear()
        studies = [read_study(Path("experiments") / folder.name) for folder in STUDIES]
        return {(run.fingerprint, run.measure) for study in studies for run in study.runs()}

    before = digests()
    for name in ("en", "fi", "ja", "zh-TW", "response", "join", "skip", "PlainTagger", "ElChat", "arc_easy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    assert digests() == before
