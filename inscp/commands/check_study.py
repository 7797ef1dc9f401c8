"""A study's configurations, read by the commands that will run them: what is wrong is told before the first hour."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from inscp.commands.evaluate import evaluate, require_runnable
from inscp.commands.fit import InsCPCLI
from inscp.commands.merge import merge
from inscp.commands.parser import Parser
from inscp.errors import UserError
from inscp.experiment.configuration import Config, digest, without
from inscp.experiment.study import Run


def check_runs(runs: Sequence[Run]) -> None:
    """See that every command takes its configuration, and that the files are there which it names.

    Args:
        runs: those of several seeds are read once.

    Raises:
        UserError: one does not, by the name of its run.
    """
    seen: set[str] = set()
    for run in runs:
        checks: dict[Callable[[Config], None], Config | None] = {
            _check_fit: run.fit and without(run.fit, "seed_everything", "data.seed"),
            _check_merge: run.merge,
            _check_evaluation: run.evaluate or None,
        }
        for check, config in checks.items():
            key = digest(check.__name__, config)
            if config is not None and key not in seen:
                seen.add(key)
                try:
                    check(deepcopy(config))  # a parser fills in what it is given
                except UserError as error:
                    raise UserError(f"{run.title}: {error.where}", error.what, error.mend) from error


class _Unstarted(InsCPCLI):
    """`fit` as far as the configuration goes: no trainer, which may need devices that are somewhere else."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_object(args)

    def instantiate_classes(self) -> None:
        self.datamodule = self._get(self.parser.instantiate_classes(self.config), "data")


def _check_fit(config: Config) -> None:
    _Unstarted(run=False, args=config).datamodule.require_sources()


def _check_merge(config: Config) -> None:
    _parsed(merge, config, model="", out="")


def _check_evaluation(config: Config) -> None:
    given = _parsed(evaluate, config, model="")
    require_runnable(given.tasks, given.server)


def _parsed(command: Callable[..., None], config: Config, **given: str) -> Any:
    parser = Parser(prog=f"python -m inscp {command.__name__}")
    parser.add_function_arguments(command)
    return parser.instantiate_classes(parser.parse_object({**config, **given}))
