"""`experiment`: a whole study, run and reported by its folder."""

import sys
from fnmatch import fnmatch
from pathlib import Path

from inscp.commands.check_study import check_goals, check_runs
from inscp.commands.parser import call
from inscp.commands.study_file import read_study, said_in
from inscp.errors import UserError
from inscp.evaluation.tasks import import_all
from inscp.experiment.costs import Forecast
from inscp.experiment.jobs import Scheduler, write_jobs
from inscp.experiment.page import HTML, MARKDOWN
from inscp.experiment.parent import ParentRun
from inscp.experiment.places import OUT, Places, keep
from inscp.experiment.report import study_page
from inscp.experiment.runner import Runner
from inscp.experiment.runs import Run, named
from inscp.experiment.study import Study
from inscp.progress import duration


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp experiment run|report|keep FOLDER`"""
    import_all()
    following = [*arguments, ""][1:]
    arguments = ["--dry_run=true" if argument.replace("-", "_") == "__dry_run" and value not in ("true", "false")
                 else argument for argument, value in zip(arguments, following, strict=True)]  # fmt: skip
    call(command, {"run": run_study, "report": report_study, "keep": keep_study}, arguments, as_positional=True)


def run_study(
    folder: str,
    out: str = OUT,
    only: str | list[str] | None = None,
    dry_run: bool = False,
    jobs: Scheduler | None = None,
    gpus: int = 1,
    measured: str | None = None,
) -> None:
    """Run what is not done of a study; the same command goes on where it was interrupted.

    Args:
        folder: that holds experiment.yaml.
        out: models and results go into its folder `runs`, which studies share; the rest into one of the study's name.
        only: run those whose name is like this (`InsCP, fi*`) or one of these, and what they start from.
        dry_run: list the runs, and run nothing.
        jobs: write job files of what is not done, for a scheduler to run them side by side, and run nothing.
        gpus: of a job.
        measured: a folder that `experiment keep` wrote: its runs, measured elsewhere, are done too.
    """
    if jobs and dry_run:
        raise UserError("--jobs", "a dry run writes nothing", "Leave one of them out.")
    study, where = read_study(Path(folder)), _places(out, measured)
    every = _runs(study, folder, where)
    runs = _chosen(every, only)
    with said_in(folder):
        look_for_files = check_runs(runs)
        if not (jobs or dry_run):  # which jobs will see; a plan needs none
            look_for_files()
    if jobs:
        into = where.of_study(study.name, Path(folder)) / "jobs"
        left = where.left(runs)
        script = write_jobs(jobs, left, folder, where, gpus, into)
        where.claim(study.name, Path(folder))
        ParentRun(study.mlflow, study.name, study.question).begin()  # which the jobs find
        print(f"submit     {script}" if left else "nothing is left to be run")
        return
    if dry_run:
        _list(runs, every, where)
        with said_in(folder):
            look_for_files()
        return
    Runner(study, where).run(runs, every)
    _list(runs, every, where)
    print(f"\nnext:\n  {where.command('report', folder)}")


def report_study(folder: str, out: str = OUT, measured: str | None = None) -> None:
    """What the runs that are done come to: Markdown, PNG and one HTML page, kept in the study's MLflow run.

    Args:
        folder: that holds experiment.yaml.
        out: as it was given to `experiment run`.
        measured: likewise.
    """
    study, where = read_study(Path(folder)), _places(out, measured)
    into = where.of_study(study.name, Path(folder)) / "report"
    runs = _runs(study, folder, where)
    missing = where.left(runs)
    try:
        check_runs(missing)()  # a run is known by the files that it names: without them it is not found
    except UserError as error:
        if len(missing) == len(runs):
            raise
        print(f"warning: {error}", file=sys.stderr, flush=True)
    study_page(study, runs, folder, where, into).write(into)
    where.claim(study.name, Path(folder))
    ParentRun(study.mlflow, study.name, study.question).keep(into, "report")
    print(f"report     {into / HTML}\n           {into / MARKDOWN}")
    if missing:
        print(f"{len(missing)} of {len(runs)} runs are not in it: they have not been run")
        print(f"\nnext:\n  {where.command('run', folder)}")


def keep_study(folder: str, kept: str, out: str = OUT) -> None:
    """Keep what a report needs of the runs that are measured: figures, cost and origin; no text, no weights.

    A machine may go then, and another one goes on: give that folder to `run` and `report` as `--measured`.

    Args:
        folder: that holds experiment.yaml.
        kept: the folder to add them to, of any number of studies.
        out: as it was given to `experiment run`.
    """
    study, where = read_study(Path(folder)), Places(Path(out), Path(kept))
    with said_in(folder):
        runs = [run for run in study.runs() if run.evaluate]
    print(f"{keep(map(where.made, runs), Path(kept))} runs added to {kept}")
    if missing := where.left(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} kept; not measured: {named(missing)}")


def _runs(study: Study, folder: str, where: Places) -> list[Run]:
    """All of a study, which can reach what it wants."""
    with said_in(folder):
        runs = study.runs(where.told)
        check_goals(study.goals, runs)
    return runs


def _places(out: str, measured: str | None) -> Places:
    """
    Raises:
        UserError: there is no such folder of measured runs.
    """
    if measured is not None and not Path(measured).is_dir():
        raise UserError("--measured", f"there is no folder {measured}", "`experiment keep` makes it.")
    return Places(Path(out), Path(measured) if measured else None)


def _chosen(runs: list[Run], only: str | list[str] | None) -> list[Run]:
    if only is None:
        return runs
    chosen = []
    for name in [only] if isinstance(only, str) else only:
        alike = [run for run in runs if name in (run.title, run.name) or fnmatch(run.title, name)]
        if not alike:
            raise UserError("--only", f"no run is like {name}", f"There are: {'; '.join(run.title for run in runs)}.")
        chosen += alike
    return list({one.name: one for run in chosen for one in run.lineage}.values())


def _list(runs: list[Run], every: list[Run], where: Places) -> None:
    """Print some of a study's runs with their tokens, what is done of each, and how long the rest will take."""
    forecast, left = Forecast(list(map(where.measured_or_made, every))), 0.0
    wide = max(len(run.title) for run in runs) + 2
    print(f"{'':<{wide}}{'tokens':>12}   {'state':<16}{'time':>8}")
    for at in map(where.measured_or_made, runs):
        run = at.run
        state = "done" if at.is_done else "to be measured" if at.model and run.evaluate else "to be run"
        seconds = 0.0 if at.is_done else forecast.seconds(at)
        left += seconds or 0.0
        time = "" if at.is_done else "?" if seconds is None else duration(seconds)
        tokens = f"{run.budget:,}" if run.trains and run.budget else ""
        print(f"{run.title:<{wide}}{tokens:>12}   {state:<16}{time:>8}".rstrip())
    if left:
        note = "" if forecast.knows_evaluations else "   and evaluations, of which none is done yet"
        print(f"{'':<{wide}}{'':>12}   {'left, about':<16}{duration(left):>8}{note}")
