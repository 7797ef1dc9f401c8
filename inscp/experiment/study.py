"""A study: arms, languages, budgets and seeds as changes to one configuration, expanded into runs."""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from inscp.errors import UserError
from inscp.experiment.configuration import Config, changed, read_configs
from inscp.experiment.goals import Goal
from inscp.experiment.runs import Run, slug
from inscp.tracking.tracked_run import Tracking

FILE = "experiment.yaml"


@dataclass(frozen=True)
class Arm:
    """One method: a training run, a merge, an extended vocabulary, or (with none of them) the unchanged original model.

    In its values {language} is replaced by the language, as in `data.tagger.user: samples:requests/{language}.txt`.

    Args:
        fit: keys of `fit` that differ from the base (`data.tagger: PlainTagger`); {} if none does.
        merge: keys of `merge` (`method: {class_path: Average, init_args: {weight: 0.5}}`).
        extend: keys of `extend` (`data: my.jsonl`, `tokens: 4000`).
        after: arm whose model is the starting point, instead of the original.
    """

    fit: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    extend: dict[str, Any] | None = None
    after: str | None = None

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Its configuration keys, by command."""
        every = {"fit": self.fit, "merge": self.merge, "extend": self.extend}
        return {command: keys for command, keys in every.items() if keys is not None}


@dataclass(frozen=True)
class Language:
    """The changes for one language.

    Args:
        fit: keys of `fit` that differ from the base (`data.train`, `data.language`, …).
        evaluate: keys of `evaluate` that differ from the base.
    """

    fit: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A training stage that is not run, and whose cost the report projects by formula.

    Args:
        after: arm that it would follow.
        tokens_per_token: its tokens, per token of all training runs that lead to that arm.
        passes: cost per token, in forward passes: 3 for training, 4 for DPO (arXiv 2305.18290), which also needs the
            original model's likelihoods.
    """

    after: str
    tokens_per_token: float = 1.0
    passes: float = 3.0


@dataclass(frozen=True)
class Study:
    """The content of `experiment.yaml`. Paths in it are relative to the current folder.

    Args:
        name: name of the study and of its output folder.
        question: question that the study answers.
        fit: complete configuration files of `fit`; later files override earlier ones.
        evaluate: configuration files of `evaluate`; without any, nothing is evaluated.
        arms: arms by name.
        languages: languages by BCP 47 tag; a language may also be given as the path of a file.
        seeds: random seeds; an arm that trains nothing has none.
        budgets: token budgets; without any, the one of the configuration.
        reference: arm with which the others are compared; by default the first.
        kept: language to preserve, by its name in the tasks; the report plots what is gained against it.
        goals: goals for the arms; the report selects an arm on one half of the items and tests it on the other half.
        projected: stages that are not run, by name, for the cost projection at other model sizes.
        mlflow: MLflow tracking of the study, under one parent run.
    """

    name: str
    question: str
    fit: list[str]
    arms: dict[str, Arm]
    languages: dict[str, Language]
    evaluate: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    budgets: list[int] = field(default_factory=list)
    reference: str | None = None
    kept: str = "en"
    goals: list[Goal] = field(default_factory=list)
    projected: dict[str, Stage] = field(default_factory=dict)
    mlflow: Tracking = field(default_factory=Tracking)

    def check(self) -> None:
        """
        Raises:
            UserError: an arm is a duplicate or follows itself, a name is invalid, or there is nothing to run.
        """
        for name, values in {"arms": self.arms, "languages": self.languages, "seeds": self.seeds}.items():
            if not values:
                raise UserError(name, "it is empty", "Give at least one.")
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise UserError("seeds", f"{wrong[0]} is not a valid seed", "Give whole numbers from 0 to 4294967295.")
        for name in (*self.arms, *self.languages):
            if not isinstance(name, str):  # YAML reads 1e-5 and no as something else
                raise UserError("names", f"{name!r} is not a name", "Write it in quotes.")
        for name in (self.name, *self.arms, *self.languages, *self.projected):
            if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
                raise UserError("names", f"{name!r} has a line break or another control character", "Remove it.")
        for names in (self.arms, self.languages):
            slugs = [slug(name) for name in names]
            if twice := next((name for name in names if slugs.count(slug(name)) > 1 or not slug(name)), None):
                raise UserError(twice, "its folder would have the same name as another one's", "Choose another name.")
        changes = {f"arms.{name}": [*arm.sections.values()] for name, arm in self.arms.items()}
        changes |= {f"languages.{tag}": [of.fit, of.evaluate] for tag, of in self.languages.items()}
        for where, sections in changes.items():
            if not all(isinstance(section, Mapping) for section in sections):
                raise UserError(where, "its changes are not a section of keys", "Write {KEY: VALUE, …}.")
        for name, arm in self.arms.items():
            if len(arm.sections) > 1:
                what = f"it has {' and '.join(arm.sections)}"
                raise UserError(f"arms.{name}", what, "Make each an arm of its own, the second `after` the first.")
            if arm.after and not arm.sections:
                raise UserError(
                    f"arms.{name}", f"nothing happens after {arm.after}", "Give `fit`, `merge` or `extend`."
                )
            seen = [name]
            while (before := self.arms[seen[-1]].after) is not None:
                if not isinstance(before, str) or before not in self.arms:
                    known = ", ".join(self.arms)
                    raise UserError(f"arms.{seen[-1]}.after", f"there is no arm {before}", f"Choose from: {known}.")
                if before in seen:
                    raise UserError(f"arms.{name}.after", "the arm follows itself", "Start from the original.")
                seen.append(before)
        named = {"reference": self.reference} | {f"projected.{name}": of.after for name, of in self.projected.items()}
        for where, arm_name in named.items():
            if arm_name is not None and arm_name not in self.arms:
                raise UserError(where, f"there is no arm {arm_name}", f"Choose from: {', '.join(self.arms)}.")

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.reference or next(iter(self.arms))

    def runs(self, complete: Callable[[Run], Run] = lambda run: run) -> list[Run]:
        """Every run, each after the one that it starts from; a run that depends on neither seed nor budget occurs once.

        Args:
            complete: adds to a run the digests of files that are not on this machine, as `Places.complete` does.

            Raises:
                UserError: a configuration is invalid.
        """
        fit, evaluate = read_configs(self.fit), read_configs(self.evaluate)
        found: dict[str, Run] = {}
        for tag, language in self.languages.items():
            base = changed(fit, {"data.language": tag} | language.fit)
            measures = changed(evaluate, language.evaluate)
            _require_tasks(measures, tag)
            budgets: list[int | None] = [*self.budgets] or [None]
            for name, budget, seed in product(self.arms, budgets, self.seeds):
                drawn = {"data.seed": seed, "seed_everything": seed}
                limited = {} if budget is None else {"data.token_budget": budget}
                run = self._run(name, tag, seed, changed(base, drawn | limited), measures, complete)
                for one in run.lineage:
                    found.setdefault(one.name, one)
        return list(found.values())

    def _run(
        self, name: str, language: str, seed: int, base: Config, evaluate: Config, complete: Callable[[Run], Run]
    ) -> Run:
        """The run of an arm, and through `before` those of the arms that it follows.

        Args:
            name, language, seed: of the run.
            base: training configuration with the language, the seed and the budget, but without the arm.
            evaluate, complete: as in `Run`, and as in `runs`.
        """
        arm = self.arms[name]
        made: dict[str, Config] = _in_language(arm.sections, language)
        before = self._run(arm.after, language, seed, base, evaluate, complete) if arm.after else None
        trained = changed(base, made.get("fit", {}))
        original = before.original if before else _original(trained)
        if "fit" in made:
            budget = trained["data"].get("token_budget")
            return complete(Run(name, language, budget, seed, original, before, evaluate, "fit", trained))
        budget, drawn_by = (before.budget, before.seed) if before else (None, None)
        if "extend" in made:
            made["extend"].setdefault("language", language)
        command, config = next(iter(made.items()), ("", {}))
        return complete(Run(name, language, budget, drawn_by, original, before, evaluate, command, config))


def _require_tasks(evaluate: Config, language: str) -> None:
    """
    Raises:
        UserError: its tasks are not sections of keys.
    """
    tasks = evaluate.get("tasks", {})
    sections = {"tasks": tasks} | ({f"tasks.{name}": tasks[name] for name in tasks} if isinstance(tasks, dict) else {})
    if wrong := next((where for where, section in sections.items() if not isinstance(section, Mapping)), None):
        what = "it is not a section of keys"
        raise UserError(f"{language}: {wrong}", what, "Write {class_path: TASK, init_args: {…}}.")


def _in_language(value: Any, language: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_language(one, language) for key, one in value.items()}
    if isinstance(value, list):
        return [_in_language(one, language) for one in value]
    return value.replace("{language}", language) if isinstance(value, str) else value


def _original(config: Config) -> str:
    """The model that a training run starts from.

    Raises:
        UserError: a section of the configuration is not a mapping, or no model is named.
    """
    for section in ("model", "data"):
        if not isinstance(config.get(section), Mapping):
            raise UserError(section, "it is not a section of keys", "Write {KEY: VALUE, …}, or KEY.KEY: VALUE.")
    if not config["model"].get("pretrained"):
        raise UserError("model.pretrained", "it is not set", "Name the model in a configuration of `fit`.")
    return str(config["model"]["pretrained"])
