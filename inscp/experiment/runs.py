"""One run of a study, and the digests that identify it: of what determines its model, and of what is measured."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from inscp import __version__
from inscp.evaluation.results import SCHEMA
from inscp.evaluation.tasks import task_version
from inscp.experiment.configuration import LAYOUT, Config, Contents, contents_of, digest, without


@dataclass(frozen=True)
class Run:
    """One arm in one language with one budget and one seed.

    Attributes:
        arm, language: their names in the study.
        budget: tokens that it trains on; None if it trains nothing, or on all data.
        seed: None if nothing is trained.
        original: the model at the start of its lineage.
        before: the run whose model is the starting point, instead of the original.
        evaluate: configuration of the evaluation; if empty, nothing is measured.
        command: command that makes its model (`fit`, `merge`, `extend`); empty if it is the original.
        config: configuration of that command.
        known: digests of files that it names and that are not on this machine.
    """

    arm: str
    language: str
    budget: int | None
    seed: int | None
    original: str
    before: "Run | None"
    evaluate: Config
    command: str = ""
    config: Config = field(default_factory=dict)
    known: Contents = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its display name, unique among the runs."""
        parts = [self.arm, self.language]
        parts += [self.amount] if self.amount else []
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        return ", ".join(parts)

    @property
    def trains(self) -> bool:
        """Whether its model is made by training."""
        return self.command == "fit"

    @property
    def lineage(self) -> list["Run"]:
        """The runs that it starts from, the first one first, and itself."""
        return [*(self.before.lineage if self.before else []), self]

    @property
    def tokens(self) -> int | None:
        """Tokens of all its training runs together; None if there are none, or one trains on all data."""
        return sum(filter(None, self._budgets)) if self._budgets and all(self._budgets) else None

    @property
    def passes(self) -> float:
        """Cost per token in forward passes, a mean over its training runs.

        One forward, one for the gradients of the activations, one for those of the weights if they are trained
        (adapters or new tokens alone have next to none), and a teacher's if there is one.
        """
        trained = [one for one in self.lineage if one.trains]
        if not trained:  # here: a model made elsewhere is merged, say
            return 3.0
        budgets = [one.budget for one in trained if one.budget]
        known = budgets if len(budgets) == len(trained) else None  # else all count equally
        return fmean((one._own_passes for one in trained), weights=known)

    @property
    def _own_passes(self) -> float:
        """Cost per token of this training run in forward passes; a teacher predicts only the replayed fraction."""
        model = self.config["model"]
        trains_weights = model.get("adapter") is None and not model.get("new_tokens_only")
        taught = 0.0 if model.get("distillation") is None else float(self.config["data"]["replay"]["share"])
        return 2.0 + trains_weights + taught

    @property
    def amount(self) -> str:
        """Its tokens as text: their sum, or those of each training run if one uses all data; empty without a budget."""
        if self.tokens:
            return f"{self.tokens:,} tokens"
        parts = [f"{budget:,}" if budget else "all" for budget in self._budgets]
        return f"{' + '.join(parts)} tokens" if any(self._budgets) else ""

    @property
    def _budgets(self) -> list[int | None]:
        return [one.budget for one in self.lineage if one.trains]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that determines the model, except the program itself."""
        before = self.before.fingerprint if self.before else self.original
        return digest(*self._making, before, known=self.known)

    @cached_property
    def measure(self) -> str:
        """A digest of everything that determines what is measured of the model."""
        tasks = self.evaluate.get("tasks", {})
        versions = {name: task_version(task["class_path"]) for name, task in tasks.items() if "class_path" in task}
        return digest(self._evaluation, versions, SCHEMA, __version__, known=self.known)

    @property
    def contents(self) -> dict[str, str]:
        """Digests of the files on which `fingerprint` and `measure` depend."""
        return {
            **(self.before.contents if self.before else {}),
            **contents_of(*self._making, self.original, self._evaluation),
        }

    @property
    def _making(self) -> tuple[Config, Config | None]:
        """What determines its model: the configuration of a training run, and of any other command that makes one."""
        if self.trains:
            return without(self.config, *_NO_MATTER, *LAYOUT), None
        return {}, self.config if self.command else None

    @property
    def _evaluation(self) -> Config:
        return without(self.evaluate, *_NO_MATTER)

    @property
    def name(self) -> str:
        """Name of its folder: readable, and different if anything that determines the model changes."""
        return f"{_shortened(slug(self.title))}-{self.fingerprint[:8]}"

    def axes(self) -> Mapping[str, str]:
        """What distinguishes it from the other runs of the study, as tags."""
        every = {"arm": self.arm, "language": self.language, "budget": self.budget, "seed": self.seed}
        return {name: str(value) for name, value in every.items() if value is not None}


def _shortened(name: str) -> str:
    """As much of a name as fits into a file name, with what is added before and after it."""
    return name.encode()[:_MOST].decode(errors="ignore").strip("-")


def named(runs: Sequence[Run]) -> str:
    """The titles of the first few runs, and how many more there are."""
    more = len(runs) - _NAMED
    return "; ".join(run.title for run in runs[:_NAMED]) + (f"; {more} more" if more > 0 else "")


_NAMED = 5
_MOST = 200  # bytes, of the 255 that file systems allow
_NO_MATTER = ("mlflow", "cost", "checkpoint", "before_after", "trainer.default_root_dir", "out")
"""Keys that affect neither a model nor what is measured of it."""


def slug(title: str) -> str:
    """A folder name for a title: lower-case letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", title.replace(",", "").lower()).strip("-")
