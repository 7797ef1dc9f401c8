"""`compare`: how two evaluations of the same items differ, with intervals and tests."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inscp.commands.parser import call
from inscp.errors import UserError
from inscp.evaluation.results import Results, items_folder, read_items
from inscp.evaluation.statistics import Difference, differences


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp compare BEFORE.json AFTER.json`"""
    call(command, compare, arguments, as_positional=True)


def compare(before: str, after: str) -> None:
    """Print how each metric differs on the items that both evaluations have.

    Args:
        before: a results file of `evaluate`.
        after: another one.
    """
    files = Path(before), Path(after)
    results = [Results.read(file) for file in files]
    shared = [name for name in results[0].tasks if name in results[1].tasks]
    if not shared:
        raise UserError(after, f"it shares no task with {before}", "Evaluate both by the same configuration.")
    print(f"before  {results[0].model}\nafter   {results[1].model}")
    for name in shared:
        kinds = [f"{result.tasks[name].kind}, version {result.tasks[name].version}" for result in results]
        if kinds[0] != kinds[1]:
            what = f"{name} is {kinds[1]}, in {before} it is {kinds[0]}"
            raise UserError(after, what, "Evaluate both by the same configuration and version of this program.")
        found = differences(*(read_items(items_folder(file), name) for file in files))
        if not found:
            what = f"none of the items of {name} is in {before}"
            raise UserError(after, what, "Evaluate both by the same configuration.")
        print(f"\n{name:<40}{'before':>9}{'after':>9}{'change':>9}{'95 % interval':>20}{'p':>8}{'n':>7}")
        for metric, difference in found.items():
            print(_line(metric, difference))
        for setting in _other_settings(*(result.environment.get("settings", {}).get(name, {}) for result in results)):
            print(f"  asked otherwise: {setting}")


def _other_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What of a task's configuration differs: its numbers may differ for that reason alone."""
    for name in {**before, **after}:
        values = before.get(name), after.get(name)
        if values[0] != values[1]:
            yield f"{name} {values[0]!r:.60}, after {values[1]!r:.60}"


def _line(name: str, found: Difference) -> str:
    low, high = found.change.interval
    interval = f"{low:+.3f} to {high:+.3f}" if math.isfinite(low) else "–"
    numbers = f"{found.before:>9,.3f}{found.after:>9,.3f}{found.change.value:>+9,.3f}{interval:>20}"
    return f"  {name:<38}{numbers}{found.p:>8.3f}{found.n:>7,}"
