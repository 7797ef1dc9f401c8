"""Job files for a scheduler to run in parallel; each job calls `experiment run --only` for its runs."""

import json
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from os.path import normpath
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

from inscp.errors import UserError
from inscp.experiment.places import Places
from inscp.experiment.runs import Run
from inscp.paths import write_atomically

Scheduler = Literal["slurm", "kubernetes", "skypilot"]
_SUFFIXES: dict[Scheduler, str] = {"slurm": ".sbatch", "kubernetes": ".yaml", "skypilot": ".yaml"}
_SUBMITS: dict[Scheduler, str] = {"kubernetes": "kubectl apply -f", "skypilot": "sky jobs launch --yes"}


def write_jobs(scheduler: Scheduler, runs: Sequence[Run], study: str, where: Places, gpus: int, folder: Path) -> Path:
    """Write the job files and the script that submits them all.

    SLURM holds a job back until the run that it starts from is done, so there is one job per run. The others do not,
    and their disks may not support locks, so one job does a run and all runs that start from it.

    Args:
        scheduler: the scheduler.
        runs: each after the run that it starts from.
        study: study folder, as given to `experiment run`.
        where: folders of models and results, and of results measured elsewhere; all jobs must see both.
        gpus: GPUs per job, on one node.
        folder: folder for the files.

    Returns:
        the script.

    Raises:
        UserError: a job would write to a folder that is not kept, or the number of GPUs is invalid.
    """
    if gpus < 0:
        raise UserError("--gpus", f"must be at least 1, not {gpus}", "Give the number of GPUs per run.")
    if scheduler == "skypilot" and not any(_lies_in(where.out, kept) for kept in ("outputs", "/outputs")):
        what = f"a SkyPilot job keeps only the folder `outputs`, not {where.out}"
        raise UserError("--out", what, "Give a folder inside outputs, such as outputs/experiments.")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(files(__package__).joinpath(f"jobs/{scheduler}.jinja").read_text("utf-8"))
    submit = ["#!/usr/bin/env bash", "set -euo pipefail"]
    jobs = [[run] for run in runs] if scheduler == "slurm" else _families(runs)
    for number, job in enumerate(jobs):
        titles = [run.title for run in job]  # names contain a digest of files, which may be on another machine
        only = titles[0] if len(titles) == 1 else json.dumps(titles, ensure_ascii=False)
        arguments = [*where.arguments("run", study), "--only", only]
        file = folder / f"{job[0].name}{_SUFFIXES[scheduler]}"
        text = template.render(
            title="; ".join(titles),
            job=_job_name(job[0]),
            gpus=gpus,
            file=file,
            command=shlex.join(["python", "-m", "inscp", *arguments]),
            arguments=json.dumps(arguments, ensure_ascii=False),
        )
        write_atomically(file, text)
        submit.append(f"{_SUBMITS[scheduler]} {shlex.quote(str(file))}" if scheduler != "slurm" else
                      _held_back(runs, number, file))  # fmt: skip
    script = folder / "submit.sh"
    write_atomically(script, "\n".join(submit) + "\n")
    script.chmod(0o755)
    return script


def _lies_in(folder: Path, other: str) -> bool:
    return Path(normpath(folder)).is_relative_to(other)


def _families(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs grouped by the run that they all start from."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.lineage[0].fingerprint, []).append(run)
    return list(found.values())


def _held_back(runs: Sequence[Run], number: int, file: Path) -> str:
    """The submission of a SLURM job, which waits for the run that it starts from."""
    places = {run.name: place for place, run in enumerate(runs)}
    before = runs[number].before
    after = f'--dependency=afterok:"$job{places[before.name]}" ' if before and before.name in places else ""
    return f"job{number}=$(sbatch --parsable {after}{shlex.quote(str(file))})"


def _job_name(run: Run) -> str:
    """A name that Kubernetes accepts: lower-case letters, digits and dashes, 63 at most."""
    return re.sub(r"[^a-z0-9-]+", "-", run.name)[-63:].strip("-")
