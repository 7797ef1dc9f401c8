"""One job file a run, for a scheduler to run them side by side; each job is `experiment run --only` of its run."""

import json
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

from inscp.experiment.study import Run
from inscp.paths import write_whole

Scheduler = Literal["slurm", "kubernetes", "skypilot"]
_SUFFIXES: dict[Scheduler, str] = {"slurm": ".sbatch", "kubernetes": ".yaml", "skypilot": ".yaml"}
_SUBMITS: dict[Scheduler, str] = {"kubernetes": "kubectl apply -f", "skypilot": "sky jobs launch --yes"}


def write_jobs(scheduler: Scheduler, runs: Sequence[Run], study: str, out: str, gpus: int, folder: Path) -> Path:
    """Write a job file for each run and the script that submits them all.

    Args:
        scheduler: which.
        runs: each behind what it starts from.
        study: its folder, as `experiment run` takes it.
        out: where models and results go; all jobs must see it.
        gpus: of one node, for each job.
        folder: for the files.

    Returns:
        the script.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(files(__package__).joinpath(f"jobs/{scheduler}.jinja").read_text("utf-8"))
    submit = ["#!/usr/bin/env bash", "set -euo pipefail"]
    for number, run in enumerate(runs):
        arguments = ["experiment", "run", study, "--out", out, "--only", run.title]
        file = folder / f"{run.name}{_SUFFIXES[scheduler]}"
        text = template.render(
            title=run.title,
            job=_job_name(run),
            gpus=gpus,
            file=file,
            command=shlex.join(["python", "-m", "inscp", *arguments]),
            arguments=json.dumps(arguments),
        )
        write_whole(file, text)
        submit.append(_submission(scheduler, runs, number, file))
    script = folder / "submit.sh"
    write_whole(script, "\n".join(submit) + "\n")
    script.chmod(0o755)
    return script


def _submission(scheduler: Scheduler, runs: Sequence[Run], number: int, file: Path) -> str:
    """How one job is submitted: SLURM holds it back until what it starts from is there; elsewhere a lock does."""
    if scheduler != "slurm":
        return f"{_SUBMITS[scheduler]} {shlex.quote(str(file))}"
    places = {run.name: place for place, run in enumerate(runs)}
    before = runs[number].before
    after = f'--dependency=afterok:"$job{places[before.name]}" ' if before and before.name in places else ""
    return f"job{number}=$(sbatch --parsable {after}{shlex.quote(str(file))})"


def _job_name(run: Run) -> str:
    """What Kubernetes takes: lower-case letters, digits and dashes, 63 at most."""
    return re.sub(r"[^a-z0-9-]+", "-", run.name)[-63:].strip("-")
