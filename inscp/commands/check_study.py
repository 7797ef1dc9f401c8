"""Parses a study's configurations with the commands that will run them, so that errors show before anything runs."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any

from jsonargparse import Namespace

from inscp.commands.checks import require_supported, require_texts
from inscp.commands.evaluate import evaluate, require_runnable
from inscp.commands.extend import extend
from inscp.commands.fit import InsCPCLI
from inscp.commands.merge import merge
from inscp.commands.parser import Parser
from inscp.data.pipeline import as_sources
from inscp.data.sources import require_source
from inscp.errors import UserError, within
from inscp.experiment.configuration import Config, digest, without
from inscp.experiment.goals import Goal
from inscp.experiment.runs import Run
from inscp.model.origin import ORIGIN
from inscp.paths import local_path
from inscp.pretrained import REMOTE_CODE

LookForFiles = Callable[[], None]
"""Raises a `UserError` if texts or prompts that a configuration names are missing."""


def check_runs(runs: Sequence[Run]) -> LookForFiles:
    """Check that every command accepts its configuration.

    Args:
        runs: runs that differ only in the seed are checked once.

    Returns:
        a function that looks for the files, which may be on another machine.

    Raises:
        UserError: a configuration is invalid; the message names its arm and language.
    """
    looks: dict[str, tuple[str, LookForFiles]] = {}
    for run in runs:
        _require_made(run)
        making = without(run.config, "seed_everything", "data.seed") if run.trains else run.config
        measuring = "evaluate" if run.evaluate else ""
        for command, config, whose in ((run.command, making, f"arms.{run.arm}."), (measuring, run.evaluate, "")):
            key = digest(command, config)
            if command and key not in looks:
                where = f"{whose}{command} in {run.language}"
                with within(where):
                    looks[key] = where, _CHECKS[command](deepcopy(config))  # a parser modifies its input

    def look_for_files() -> None:
        for where, look in looks.values():
            with within(where):
                look()

    return look_for_files


def check_goals(goals: Sequence[Goal], runs: Sequence[Run]) -> None:
    """Check that each goal can be measured in one of the study's languages, as a mean over items, which halves allow.

    Args:
        goals: goals of the study.
        runs: all of its runs.

    Raises:
        UserError: no task measures the metric of a goal.
    """
    known: list[tuple[str, str]] = []
    for language, config in {run.language: run.evaluate for run in runs if goals and run.evaluate}.items():
        with within(f"evaluate in {language}"):
            tasks = _parsed(evaluate, deepcopy(config), model="").tasks
        known += [(language, f"{name}/{metric}") for name, task in tasks.items() for metric in task.item_metrics]
    for goal in goals:
        if not any(fnmatchcase(goal.metric_in(language), name) for language, name in known):
            in_any = [name.replace(f"/{language}/", "/{language}/") for language, name in known]
            near = get_close_matches(goal.metric, [*in_any, *(name for _, name in known)], n=1)
            fix = f"Did you mean {near[0]}?" if near else "Choose a metric of one of its tasks."
            raise UserError(f"goals: {goal.metric}", "no task of the evaluation measures this mean over items", fix)


def _require_made(run: Run) -> None:
    """Check that a merge has a second model: the one that its model was made from, or one that it names.

    Raises:
        UserError: it merges the original, which was not made here, and names no other model.
    """
    if run.command != "merge":
        return
    method = run.config.get("method")
    names_other = isinstance(method, dict) and {"original", "base", "source"} & method.get("init_args", {}).keys()
    original = local_path(run.original.removeprefix(REMOTE_CODE))
    is_made = any(one.command for one in run.lineage[:-1]) or (original / ORIGIN).is_file()
    if not is_made and not names_other:
        fix = "Name the arm whose model it merges in `after`."
        raise UserError(f"arms.{run.arm}.merge", f"{run.original} was not made from another model", fix)


class _Unstarted(InsCPCLI):
    """`fit` without a trainer, which may need devices that are on another machine."""

    def parse_arguments(self, *_: Any) -> None:
        self.config = Namespace(seed_everything=False)

    def instantiate_classes(self) -> None:
        """Does nothing, as there is no configuration yet."""

    def parts(self, config: Config) -> list[Any]:
        given = self.parser.parse_object(config, env=False)  # as for the commands that will run it
        made = self.parser.instantiate_classes(given)
        return [made[name] for name in ("trainer", "model", "data", "checkpoint")]


@cache
def _fit() -> _Unstarted:
    """One for all configurations: creating its parser takes as long as reading two of them."""
    return _Unstarted(run=False)


def _check_fit(config: Config) -> LookForFiles:
    trainer, module, data, checkpoints = _fit().parts(config)
    require_supported(trainer, module, data, checkpoints)
    return partial(require_texts, module, data)


def _check_merge(config: Config) -> LookForFiles:
    _parsed(merge, config, model="", out="")
    return lambda: None


def _check_extension(config: Config) -> LookForFiles:
    sources = as_sources(_parsed(extend, config, model="", out="").data)

    def look() -> None:
        for source in sources:
            require_source(source)

    return look


def _check_evaluation(config: Config) -> LookForFiles:
    given = _parsed(evaluate, config, model="")
    if given.server:
        raise UserError("server", "it would answer for every arm", "Remove it, so that each arm's own model answers.")
    return partial(require_runnable, given.tasks, None)


_CHECKS: dict[str, Callable[[Config], LookForFiles]] = {
    "fit": _check_fit,
    "merge": _check_merge,
    "extend": _check_extension,
    "evaluate": _check_evaluation,
}


def _parsed(command: Callable[..., None], config: Config, **given: str) -> Any:
    parser = Parser(prog=f"python -m inscp {command.__name__}")
    parser.add_function_arguments(command)
    return parser.instantiate_classes(parser.parse_object({**config, **given}))
