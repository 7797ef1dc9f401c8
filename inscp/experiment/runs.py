"""One run of a study, and what it is known by: a digest of all that decides its model, and one of what is measured."""

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
        arm, language: by their names in the study.
        budget: tokens that it trains on; None where it trains nothing, or on all there is.
        seed: None where nothing is trained.
        original: the model that all begins with.
        before: the run whose model is the start, in the place of the original.
        evaluate: the evaluation's configuration; empty measures nothing.
        command: that makes its model (`fit`, `merge`, `extend`); empty where it is the original.
        config: of that command.
        known: digests of the files that it names and that are not here.
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
        """Its name for people, unique among the runs."""
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
        """What it starts from, the first at the front, and itself."""
        return [*(self.before.lineage if self.before else []), self]

    @property
    def tokens(self) -> int | None:
        """That all its trainings together train on; None where there is none, or one trains on all there is."""
        return sum(filter(None, self._budgets)) if self._budgets and all(self._budgets) else None

    @property
    def passes(self) -> float:
        """Forward passes that a token costs, a mean over its trainings.

        One forward, one for the gradients of the activations, one for those of the weights where they are trained
        (adapters and new tokens alone have next to none), and a teacher's where one teaches.
        """
        trained = [one for one in self.lineage if one.trains]
        if not trained:  # here, as where a model that was made elsewhere is merged
            return 3.0
        budgets = [one.budget for one in trained if one.budget]
        known = budgets if len(budgets) == len(trained) else None  # else each counts as much
        return fmean((one._own_passes for one in trained), weights=known)

    @property
    def _own_passes(self) -> float:
        """Forward passes that a token of this training costs; a teacher predicts for the replayed share of them."""
        model = self.config["model"]
        trains_weights = model.get("adapter") is None and not model.get("new_tokens_only")
        taught = 0.0 if model.get("distillation") is None else float(self.config["data"]["replay"]["share"])
        return 2.0 + trains_weights + taught

    @property
    def amount(self) -> str:
        """Its tokens for people: their sum, or those of each training where one takes all; empty without a budget."""
        if self.tokens:
            return f"{self.tokens:,} tokens"
        parts = [f"{budget:,}" if budget else "all" for budget in self._budgets]
        return f"{' + '.join(parts)} tokens" if any(self._budgets) else ""

    @property
    def _budgets(self) -> list[int | None]:
        return [one.budget for one in self.lineage if one.trains]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that decides the model, but for the program itself."""
        before = self.before.fingerprint if self.before else self.original
        return digest(*self._making, before, known=self.known)

    @cached_property
    def measure(self) -> str:
        """A digest of everything that decides what is measured of the model."""
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
        """What decides its model: of a training, and of any other command that makes one."""
        if self.trains:
            return without(self.config, *_NO_MATTER, *LAYOUT), None
        return {}, self.config if self.command else None

    @property
    def _evaluation(self) -> Config:
        return without(self.evaluate, *_NO_MATTER)

    @property
    def name(self) -> str:
        """Of its folder: readable, and another one when anything that decides the model changes."""
        return f"{_shortened(slug(self.title))}-{self.fingerprint[:8]}"

    def axes(self) -> Mapping[str, str]:
        """What distinguishes it from the other runs of the study, as tags."""
        every = {"arm": self.arm, "language": self.language, "budget": self.budget, "seed": self.seed}
        return {name: str(value) for name, value in every.items() if value is not None}


def _shortened(name: str) -> str:
    """As much of a name as a file can be called by, with what is put before and behind it."""
    return name.encode()[:_MOST].decode(errors="ignore").strip("-")


def named(runs: Sequence[Run]) -> str:
    """The first few by their titles, and how many more there are."""
    more = len(runs) - _NAMED
    return "; ".join(run.title for run in runs[:_NAMED]) + (f"; {more} more" if more > 0 else "")


_NAMED = 5
_MOST = 200  # bytes, of the 255 that file systems know
_NO_MATTER = ("mlflow", "cost", "checkpoint", "before_after", "trainer.default_root_dir", "out")
"""Keys that decide neither a model nor what is measured of it."""


def slug(title: str) -> str:
    """What a folder may be called after a title: lower-case letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", title.replace(",", "").lower()).strip("-")
