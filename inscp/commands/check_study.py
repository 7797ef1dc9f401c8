"""A study's configurations, read by the commands that will run them: what is wrong is told before the first hour."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from inscp.commands.evaluate import evaluate, require_runnable
from inscp.commands.extend import extend
from inscp.commands.fit import InsCPCLI
from inscp.commands.merge import merge
from inscp.commands.offered import require_offered, require_texts
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


@dataclass(frozen=True)
class Checked:
    """A configuration that its command takes: whose it is, and what it has become."""

    whose: str
    command: str
    given: Any


def check_runs(runs: Sequence[Run]) -> list[Checked]:
    """See that every command takes its configuration.

    Args:
        runs: those of several seeds are read once.

    Raises:
        UserError: one does not, by its arm and language.
    """
    checked: dict[str, Checked] = {}
    for run in runs:
        _require_made(run)
        making = without(run.config, "seed_everything", "data.seed") if run.trains else run.config
        measuring = "evaluate" if run.evaluate else ""
        for command, config, whose in ((run.command, making, f"arms.{run.arm}."), (measuring, run.evaluate, "")):
            key = digest(command, config)
            if command and key not in checked:
                with within(where := f"{whose}{command} in {run.language}"):
                    given = _READ[command](deepcopy(config))  # a parser fills in what it is given
                checked[key] = Checked(where, command, given)
    return list(checked.values())


def check_files(checked: Sequence[Checked]) -> None:
    """See that the texts and prompts are here which configurations name.

    Raises:
        UserError: one is not, by its arm and language.
    """
    for one in checked:
        with within(one.whose):
            _REQUIRE_FILES[one.command](one.given)


def check_goals(goals: Sequence[Goal], runs: Sequence[Run]) -> None:
    """See that what a study wants may be measured, in one of its languages.

    Args:
        goals: of the study.
        runs: all of it.

    Raises:
        UserError: no task can give it.
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
            mend = f"Did you mean {near[0]}?" if near else "Take a metric of one of its tasks."
            raise UserError(f"goals: {goal.metric}", "the evaluation does not measure it", mend)


def _require_made(run: Run) -> None:
    """A merge is with the model that another was made from, so that there must be one, or it is named.

    Raises:
        UserError: it merges the original, which was not made here, with nothing that it names.
    """
    if run.command != "merge":
        return
    method = run.config.get("method")
    names_other = isinstance(method, dict) and {"original", "base", "source"} & method.get("init_args", {}).keys()
    original = local_path(run.original.removeprefix(REMOTE_CODE))
    is_made = any(one.command for one in run.lineage[:-1]) or (original / ORIGIN).is_file()
    if not is_made and not names_other:
        mend = "Name the arm whose model it merges as `after`."
        raise UserError(f"arms.{run.arm}.merge", f"{run.original} was not made from another model", mend)


class _Unstarted(InsCPCLI):
    """`fit` as far as configurations go: no trainer, which may need devices that are somewhere else."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(seed_everything=False)  # each run's is read later: the parser takes a second to make

    def instantiate_classes(self) -> None:
        pass

    def read(self, config: Config) -> Any:
        """What a configuration has in each of its sections."""
        given = self.parser.parse_object(config, env=False)  # as for the commands that will run it
        return self.parser.instantiate_classes(given)


@cache
def _unstarted() -> _Unstarted:
    return _Unstarted(run=False)


def _read_fit(config: Config) -> Any:
    given = _unstarted().read(config)
    require_offered(given.trainer, given.model, given.data, given.checkpoint)
    return given


def _read_merge(config: Config) -> Any:
    return _parsed(merge, config, model="", out="")


def _read_extension(config: Config) -> Any:
    return _parsed(extend, config, model="", out="")


def _read_evaluation(config: Config) -> Any:
    given = _parsed(evaluate, config, model="")
    if given.server:
        raise UserError("server", "it would answer for every arm", "Leave it out; the arms' own models answer.")
    return given


_READ: dict[str, Callable[[Config], Any]] = {
    "fit": _read_fit,
    "merge": _read_merge,
    "extend": _read_extension,
    "evaluate": _read_evaluation,
}


def _require_sources(given: Any) -> None:
    for source in as_sources(given.data):
        require_source(source)


_REQUIRE_FILES: dict[str, Callable[[Any], None]] = {
    "fit": lambda given: require_texts(given.model, given.data),
    "merge": lambda given: None,
    "extend": _require_sources,
    "evaluate": lambda given: require_runnable(given.tasks, None),
}


def _parsed(command: Callable[..., None], config: Config, **given: str) -> Any:
    parser = Parser(prog=f"python -m inscp {command.__name__}")
    parser.add_function_arguments(command)
    return parser.instantiate_classes(parser.parse_object({**config, **given}))
