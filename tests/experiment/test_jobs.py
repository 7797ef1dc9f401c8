"""Job files, in the order in which they can run, that end as their runs do."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from inscp.errors import UserError
from inscp.experiment.jobs import Scheduler, write_jobs
from inscp.experiment.places import Places
from inscp.experiment.runs import Run
from inscp.experiment.study import Arm, Language, Study


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    (tmp_path / "base.yaml").write_text("model: {pretrained: org/model}\ndata: {train: x}\n")
    arms = {"orgCP": Arm(fit={}), "CP then SFT": Arm(fit={"data.epochs": 2}, after="orgCP")}
    return Study("study", "?", [str(tmp_path / "base.yaml")], arms, {"fi": Language()}).runs()


def test_slurm_holds_a_run_back_until_what_it_starts_from_is_there(runs: list[Run], tmp_path: Path) -> None:
    script = write_jobs("slurm", runs, "experiments/my study", Places(Path("out")), 8, tmp_path)
    first, second = (tmp_path / f"{run.name}.sbatch" for run in runs)
    assert script.read_text().splitlines()[2:] == [
        f"job0=$(sbatch --parsable {first})",
        f'job1=$(sbatch --parsable --dependency=afterok:"$job0" {second})',
    ]
    assert "\n#SBATCH --gpus-per-node=8\n" in first.read_text()
    assert "\n#SBATCH --cpus-per-task=64\n" in first.read_text()
    assert "experiment run 'experiments/my study' --out out --only 'orgCP, fi, seed 0' &\n" in first.read_text()


@pytest.mark.parametrize("scheduler", ["kubernetes", "skypilot"])
def test_elsewhere_one_job_runs_a_training_and_all_that_starts_from_it(
    scheduler: Scheduler, runs: list[Run], tmp_path: Path
) -> None:
    script = write_jobs(scheduler, runs, "study", Places(Path("/outputs"), Path("/kept")), 4, tmp_path)
    assert [line.split()[-1] for line in script.read_text().splitlines()[2:]] == [
        str(tmp_path / f"{runs[0].name}.yaml")
    ]
    job = yaml.safe_load((tmp_path / f"{runs[0].name}.yaml").read_text())
    both = '["orgCP, fi, seed 0", "CP then SFT, fi, seed 0"]'
    if scheduler == "kubernetes":
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert container["args"] == [
            "experiment",
            "run",
            "study",
            "--out",
            "/outputs",
            "--measured",
            "/kept",
            "--only",
            both,
        ]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
        assert len(job["metadata"]["name"]) <= 63
    else:
        assert f"--only '{both}'" in job["run"]
        assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


def test_what_several_languages_have_in_common_is_one_job(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {pretrained: org/model}\ndata: {train: x}\n")
    study = Study(
        "study", "?", [str(tmp_path / "base.yaml")], {"instruct": Arm()}, {"fi": Language(), "ja": Language()}
    )
    script = write_jobs("skypilot", study.runs(), "study", Places(Path("outputs/x")), 1, tmp_path / "jobs")
    assert len(script.read_text().splitlines()) == 2 + 1
    assert "instruct, fi; instruct, ja" in next((tmp_path / "jobs").glob("*.yaml")).read_text()


@pytest.mark.parametrize("out", ["out", "/data/outputs", "outputs/../elsewhere", "outputs2"])
def test_a_skypilot_job_does_not_write_where_nothing_is_kept(out: str, runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out: a SkyPilot job keeps only the folder `outputs`"):
        write_jobs("skypilot", runs, "study", Places(Path(out)), 1, tmp_path / "jobs")
    assert not (tmp_path / "jobs").exists()
    write_jobs("slurm", runs, "study", Places(Path(out)), 1, tmp_path / "jobs")


def test_a_job_takes_no_negative_number_of_gpus(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--gpus: must be at least 1, not -1"):
        write_jobs("slurm", runs, "study", Places(Path("out")), -1, tmp_path / "jobs")


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (75, True)])
def test_the_slurm_job_ends_as_the_run_does_and_is_queued_again_at_75(
    status: int, requeued: bool, runs: list[Run], tmp_path: Path
) -> None:
    write_jobs("slurm", runs, "study", Places(Path("out")), 1, tmp_path)
    told = (
        "trap 'sleep 0.2; exit 75' USR1; sleep 0.3; kill -USR1 $PPID; sleep 5 & wait"
        if status == 75
        else f"exit {status}"
    )
    for name, body in {"python": told, "scontrol": 'echo "$@" > queued'}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", f"{runs[0].name}.sbatch"], cwd=tmp_path, env=environment, timeout=30)
    assert done.returncode == status
    assert (tmp_path / "queued").exists() == requeued
