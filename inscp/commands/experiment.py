"""`experiment`: run, report or keep a whole study, given by its folder."""

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
    """Run the unfinished runs of a study; rerun the same command to resume after an interruption.

    Args:
        folder: study folder, which contains experiment.yaml.
        out: output folder. Models and results go into its subfolder `runs`, shared by all studies; the rest into a
            subfolder named after the study.
        only: run only those whose name matches this pattern (`InsCP, fi*`), or one of several, and the runs that they
            start from.
        dry_run: list the runs without running anything.
        jobs: write job files for the unfinished runs, so that a scheduler can run them in parallel, without running
            anything.
        gpus: GPUs per job.
        measured: folder written by `experiment keep`; the runs in it count as finished.
    """
    if jobs and dry_run:
        raise UserError("--jobs", "a dry run writes nothing", "Give only one of --jobs and --dry-run.")
    study, where = read_study(Path(folder)), _places(out, measured)
    every = _runs(study, folder, where)
    runs = _chosen(every, only)
    with said_in(folder):
        look_for_files = check_runs(runs)
        if not (jobs or dry_run):  # jobs look for them themselves; a dry run does so last
            look_for_files()
    if jobs:
        into = where.of_study(study.name, Path(folder)) / "jobs"
        left = where.left(runs)
        script = write_jobs(jobs, left, folder, where, gpus, into)
        where.claim(study.name, Path(folder))
        ParentRun(study.mlflow, study.name, study.question).begin()  # for the jobs to find
        print(f"submit     {script}" if left else "nothing is left to run")
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
    """Report the finished runs as Markdown, PNG and one HTML page, also kept in the study's MLflow run.

    Args:
        folder: study folder, which contains experiment.yaml.
        out: output folder, as given to `experiment run`.
        measured: folder written by `experiment keep`, as given to `experiment run`.
    """
    study, where = read_study(Path(folder)), _places(out, measured)
    into = where.of_study(study.name, Path(folder)) / "report"
    runs = _runs(study, folder, where)
    missing = where.left(runs)
    try:
        check_runs(missing)()  # a run is identified by the files that it names, and not found without them
    except UserError as error:
        if len(missing) == len(runs):
            raise
        print(f"warning: {error}", file=sys.stderr, flush=True)
    study_page(study, runs, folder, where, into).write(into)
    where.claim(study.name, Path(folder))
    ParentRun(study.mlflow, study.name, study.question).keep(into, "report")
    print(f"report     {into / HTML}\n           {into / MARKDOWN}")
    if missing:
        print(f"{len(missing)} of {len(runs)} runs are missing: they have not been run yet")
        print(f"\nnext:\n  {where.command('run', folder)}")


def keep_study(folder: str, kept: str, out: str = OUT) -> None:
    """Keep what a report needs of the evaluated runs: metrics, cost and origin, but no texts and no weights.

    The machine can then be released: pass the folder to `run` and `report` on another one as `--measured`.

    Args:
        folder: study folder, which contains experiment.yaml.
        kept: folder to add them to; several studies may share it.
        out: output folder, as given to `experiment run`.
    """
    study, where = read_study(Path(folder)), Places(Path(out), Path(kept))
    with said_in(folder):
        runs = [run for run in study.runs() if run.evaluate]
    print(f"{keep(map(where.made, runs), Path(kept))} runs added to {kept}")
    if missing := where.left(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} kept; not evaluated: {named(missing)}")


def _runs(study: Study, folder: str, where: Places) -> list[Run]:
    """All runs of a study, whose goals are checked."""
    with said_in(folder):
        runs = study.runs(where.complete)
        check_goals(study.goals, runs)
    return runs


def _places(out: str, measured: str | None) -> Places:
    """
    Raises:
        UserError: there is no such folder of measured runs.
    """
    if measured is not None and not Path(measured).is_dir():
        raise UserError("--measured", f"there is no folder {measured}", "Create it with `experiment keep`.")
    return Places(Path(out), Path(measured) if measured else None)


def _chosen(runs: list[Run], only: str | list[str] | None) -> list[Run]:
    if only is None:
        return runs
    chosen = []
    for name in [only] if isinstance(only, str) else only:
        alike = [run for run in runs if name in (run.title, run.name) or fnmatch(run.title, name)]
        if not alike:
            raise UserError("--only", f"no run matches {name}", f"Choose from: {'; '.join(run.title for run in runs)}.")
        chosen += alike
    return list({one.name: one for run in chosen for one in run.lineage}.values())


def _list(runs: list[Run], every: list[Run], where: Places) -> None:
    """Print some of a study's runs with their tokens and state, and how long the remaining ones will take."""
    forecast, left = Forecast(list(map(where.measured_or_made, every))), 0.0
    wide = max(len(run.title) for run in runs) + 2
    print(f"{'':<{wide}}{'tokens':>12}   {'state':<16}{'time':>8}")
    for at in map(where.measured_or_made, runs):
        run = at.run
        state = "done" if at.is_done else "to evaluate" if at.model and run.evaluate else "to run"
        seconds = 0.0 if at.is_done else forecast.seconds(at)
        left += seconds or 0.0
        time = "" if at.is_done else "?" if seconds is None else duration(seconds)
        tokens = f"{run.budget:,}" if run.trains and run.budget else ""
        print(f"{run.title:<{wide}}{tokens:>12}   {state:<16}{time:>8}".rstrip())
    if left:
        note = "" if forecast.knows_evaluations else "   plus evaluations, of which none is finished yet"
        print(f"{'':<{wide}}{'':>12}   {'left, about':<16}{duration(left):>8}{note}")
