"""`compare`: how evaluations of the same items differ, with intervals and tests."""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inscp.commands.parser import Parser
from inscp.commands.quiet import quiet
from inscp.errors import UserError, first_line
from inscp.evaluation.items import ITEMS, items_folder, read_values
from inscp.evaluation.labels import label
from inscp.evaluation.results import RESULTS, Metric, Results, TaskResult, require_same_measure
from inscp.evaluation.statistics import is_loss
from inscp.experiment.conditions import other_settings
from inscp.experiment.estimates import Difference, differences
from inscp.experiment.tables import Comparison, Evaluated
from inscp.tracking.store import store_uri

if TYPE_CHECKING:
    from inscp.model.origin import Origin

_RUN = re.compile(r"[0-9a-f]{32}")
_WHAT = "Print how each metric differs from the first evaluation, on the items that both share."
_RUNS = "results files of `evaluate`, or ids of evaluated MLflow runs; the others are compared with the first"


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp compare RUN RUN… [--out FOLDER]`"""
    parser = Parser(prog=f"python -m inscp {command}", description=_WHAT)
    parser.add_argument("runs", nargs="+", help=_RUNS)
    parser.add_function_arguments(compare, skip={"runs"})
    given = parser.parse_args(arguments)
    compare(given.runs, given.out, given.tracking_uri)


def compare(runs: Sequence[str], out: str | None = None, tracking_uri: str | None = None) -> None:
    """Print how each metric differs from the first evaluation, on the items that both share.

    Args:
        runs: results files of `evaluate`, or ids of evaluated MLflow runs.
        out: folder for a report on all of them: tables and plots as Markdown, PNG and one HTML page.
        tracking_uri: MLflow store of the runs; by default as for `fit`.

    Raises:
        UserError: one is not an evaluation, there is only one, or one is named twice.
    """
    places = [Path(given).resolve() for given in runs]
    if twice := next((given for number, given in enumerate(runs) if places[number] in places[:number]), None):
        raise UserError(twice, "it is named twice", "Name each evaluation once.")
    with tempfile.TemporaryDirectory() as temporary:
        files = [_results_file(given, tracking_uri, Path(temporary)) for given in runs]
        if len(files) < 2:
            raise UserError(runs[0], "there is nothing to compare it with", "Name two or more evaluations.")
        for given, file in zip(runs[1:], files[1:], strict=True):
            _print(runs[0], files[0], given, file)
        if out is not None:
            _report(files, Path(out))


def _results_file(given: str, tracking_uri: str | None, temporary: Path) -> Path:
    """The results file, downloaded if an MLflow run is named."""
    if Path(given).exists() or not _RUN.fullmatch(given):
        return Path(given)
    quiet()
    from mlflow.exceptions import MlflowException

    from inscp.tracking.mlflow_run import store_client

    folder, uri = temporary / given, store_uri(tracking_uri)
    folder.mkdir()
    try:
        client = store_client(uri)
        file = Path(client.download_artifacts(given, RESULTS, str(folder)))
        client.download_artifacts(given, ITEMS, str(folder))
    except MlflowException as error:
        what = f"{uri} has no evaluation results of this run ({first_line(error):.200})"
        raise UserError(given, what, "Evaluate its model first, or give another --tracking_uri.") from error
    return file


def _print(before: str, old: Path, after: str, new: Path) -> None:
    results = [Results.read(file) for file in (old, new)]
    shared = _shared_tasks(before, results[0], after, results[1])
    print(f"before  {results[0].model}\nafter   {results[1].model}")
    for name in shared:
        found = differences(*(read_values(items_folder(file), name) for file in (old, new)))
        if not found:
            what = f"it shares no item of {name} with {before}"
            raise UserError(after, what, "Evaluate both with the same configuration.")
        print(f"\n{name:<44}{'before':>9}{'after':>9}{'change':>10}{'95 % interval':>23}{'p':>8}{'n':>7}")
        one, other = (result.tasks[name] for result in results)
        no_means = _no_means(one, other, found)
        for metric, difference in {**found, **no_means}.items():
            print(_line(label(one.kind, metric), difference))
        for loss in filter(is_loss, no_means):
            print(f"  {label(one.kind, loss)} and perplexity are over other tokens; compare bits per byte")
        for setting in other_settings(results[0], results[1], name):
            print(f"  different settings: {setting}")
    print()


def _no_means(old: TaskResult, new: TaskResult, found: Mapping[str, Difference]) -> dict[str, Difference]:
    """The metrics that are not means over the same items or tokens, and so have no interval for their change."""
    shared = {name: (old.metrics[name], new.metrics[name]) for name in old.metrics if name in new.metrics}
    return {
        name: Difference(
            one.value, other.value, Metric(other.value - one.value, (math.nan, math.nan), other.n), math.nan
        )
        for name, (one, other) in shared.items()
        if name not in found
    }


def _shared_tasks(before: str, old: Results, after: str, new: Results) -> Sequence[str]:
    shared = [name for name in old.tasks if name in new.tasks]
    if not shared:
        raise UserError(after, f"it shares no task with {before}", "Evaluate both with the same configuration.")
    for name in shared:
        require_same_measure(name, after, new.tasks[name], before, old.tasks[name])
    return shared


def _line(name: str, found: Difference) -> str:
    change, interval = found.shown(3)
    numbers = f"{found.before:>9,.3f}{found.after:>9,.3f}{change:>10}{interval or '–':>23}"
    p = "–" if math.isnan(found.p) else "<0.001" if found.p < 0.0005 else f"{found.p:.3f}"
    return f"  {name:<42}{numbers}{p:>8}{found.n:>7,}"


def _label(model: str, origin: "Origin | None") -> str:
    """A short name: for a model that was made here, its arm and the folder of its run."""
    from inscp.pretrained import model_name

    if origin:
        return f"{origin.arm} {Path(model).resolve().parent.name}"
    name = model_name(model)
    of_run = " ".join(Path(model).parts[-3:-1]) if name == "model" else ""  # a run whose folder is not here
    return of_run or name


def _report(files: Sequence[Path], folder: Path) -> None:
    quiet()
    from inscp.experiment.page import HTML
    from inscp.experiment.report import comparison_page
    from inscp.model.origin import origin_in

    models = [Results.read(file).model for file in files]
    origins = [origin_in(Path(model)) for model in models]
    names = list(map(_label, models, origins))
    are_unique = len(set(names)) == len(names)
    rows = names if are_unique else [f"{name} ({file})" for name, file in zip(names, files, strict=True)]
    evaluated = [
        Evaluated.read(file, row, None, origin) for file, row, origin in zip(files, rows, origins, strict=True)
    ]
    question = f"How do {len(rows) - 1} evaluations differ from that of {rows[0]}?"
    comparison_page(Comparison(evaluated, rows[0]), "Comparison", question, folder).write(folder)
    print(f"report     {folder / HTML}")
