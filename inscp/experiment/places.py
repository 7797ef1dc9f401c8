"""Where the files of runs are: in the output folder, or in one that `experiment keep` wrote.

A run's folder is named after a digest of everything that determines its model, and its results file after a digest of
everything that determines what is measured. A run is done if these files exist, whichever study made them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import join

from inscp.errors import UserError
from inscp.evaluation.items import items_folder, read_values, typed, write_values
from inscp.evaluation.results import Results
from inscp.experiment.configuration import Contents
from inscp.experiment.runs import Run
from inscp.experiment.study import FILE
from inscp.model.origin import ORIGIN, Origin, origin_in
from inscp.paths import write_atomically

OUT = "outputs/experiments"
_STUDY = "study.txt"


@dataclass(frozen=True)
class Place:
    """Where one run's files are.

    Attributes:
        run: the run.
        folder: folder of its model and results.
    """

    run: Run
    folder: Path

    @property
    def model(self) -> str | None:
        """Its model, as every command takes it; None if it is not made yet, or its weights were deleted."""
        if not self.run.command:
            return self.run.original
        return next((str(path) for path in reversed(self.exported) if any(path.glob("*.safetensors"))), None)

    @property
    def exported(self) -> list[Path]:
        """The folders of its model, the newest last, which record how it was made even if the weights were deleted."""
        return sorted(self.folder.glob("*/*/model" if self.run.trains else "model"))

    @property
    def measured_model(self) -> Path | None:
        """The folder of the model that was measured, else of the newest; None if it does not exist.

        The same run may have been made twice, in another precision, say. Its results name the model that was measured.
        """
        if not self.results.is_file():
            return next(reversed(self.exported), None)
        measured = Path(Results.read(self.results).model).parts
        folders = {model.relative_to(self.folder).parts: model for model in self.exported}
        return next((model for parts, model in folders.items() if parts == measured[-len(parts) :]), None)

    @property
    def origin(self) -> Origin | None:
        """How the measured model, else the newest, was made; None if it is the original, or does not exist.

        Raises:
            UserError: the file that records it is damaged.
        """
        model = self.measured_model
        if model is None:
            return None
        try:
            found = origin_in(model)
            for stage in found.stages if found else []:
                for section in (stage.training, stage.cost):
                    typed(section, dict)
        except (OSError, TypeError, ValueError) as error:
            what = f"its {ORIGIN} does not record how the model was made ({error})"
            raise UserError(str(model), what, "Run `experiment keep` again, or make the model again.") from error
        return found

    @property
    def results(self) -> Path:
        """Its results file, which exists once it has been measured."""
        return self.folder / f"results-{self.run.measure[:8]}.json"

    @property
    def contents(self) -> Path:
        """Where `keep` records the digests of the files that the run names, for machines without these files."""
        return self.folder / f"contents-{self.run.measure[:8]}.json"

    @property
    def is_done(self) -> bool:
        """Whether it has been measured; if it has no evaluation, whether its model exists."""
        return self.results.is_file() if self.run.evaluate else self.model is not None


@dataclass(frozen=True)
class Places:
    """Where the runs of all studies are.

    Args:
        out: the output folder.
        measured: a folder written by `keep`, whose runs count as done too.
    """

    out: Path
    measured: Path | None = None

    @property
    def runs(self) -> Path:
        """The folder of the runs made here."""
        return self.out / "runs"

    def arguments(self, action: str, folder: str) -> list[str]:
        """The arguments of a command on a study whose runs are here.

        Args:
            action: `run` or `report`.
            folder: study folder.
        """
        out = ["--out", str(self.out)] if self.out != Path(OUT) else []
        known = ["--measured", str(self.measured)] if self.measured else []
        return ["experiment", action, folder, *out, *known]

    def command(self, action: str, folder: str) -> str:
        """The whole command line, as a user types it."""
        return join(["python", "-m", "inscp", *self.arguments(action, folder)])

    def of_study(self, name: str, folder: Path) -> Path:
        """The folder of what belongs to one study: its report, its jobs.

        Args:
            name: name of the study.
            folder: study folder.

        Raises:
            UserError: it belongs to another study of this name.
        """
        into = self.out / name
        file, here = into / _STUDY, folder.resolve()
        there = Path(file.read_text("utf-8").strip()) if file.is_file() else here
        if there != here and (there / FILE).is_file():  # unless that study was moved
            raise UserError(str(folder), f"{into} belongs to {there}", "Give another --out, or rename a study.")
        return into

    def claim(self, name: str, folder: Path) -> None:
        """Record that the folder `of_study` belongs to this study."""
        write_atomically(self.out / name / _STUDY, f"{folder.resolve()}\n")

    @cached_property
    def _contents(self) -> list[Contents]:
        """Digests of the files that the kept runs name: first of all runs together, then of each run alone."""
        files = sorted(self.measured.glob("*/contents-*.json")) if self.measured else []
        kept = list(map(_read_contents, files))
        together = {name: digest for of in kept for name, digest in of.items()}
        return [together, *(of for number, of in enumerate(kept) if of not in kept[:number])]

    def complete(self, run: Run) -> Run:
        """The run with the digests that `keep` recorded, for its files that are not here.

        Kept runs may name the same file with different contents: the digests with which the run is done are used.
        """
        if self.measured is None:
            return run
        alike = [replace(run, known=of) for of in self._contents]
        return next((one for one in alike if _place(one, self.measured).is_done), alike[0])

    def made(self, run: Run) -> Place:
        """Its place among the runs made here; another study may have made it under another title."""
        return _place(run, self.runs)

    def measured_or_made(self, run: Run) -> Place:
        """Where its results are: here, or else among the runs measured elsewhere."""
        here = self.made(run)
        if self.measured is None or here.is_done:
            return here
        elsewhere = _place(run, self.measured)
        return elsewhere if elsewhere.is_done else here

    def left(self, runs: Iterable[Run]) -> list[Run]:
        """The runs that are not done."""
        return [run for run in runs if not self.measured_or_made(run).is_done]


def _read_contents(file: Path) -> Contents:
    """
    Raises:
        UserError: it does not contain what `keep` writes.
    """
    try:
        return {
            typed(name, str): typed(of, str) for name, of in typed(json.loads(file.read_text("utf-8")), dict).items()
        }
    except (OSError, TypeError, ValueError) as error:
        fix = "Run `experiment keep` again, or delete this run's folder."
        raise UserError(str(file), f"it does not record the digests of the files ({error})", fix) from error


def _place(run: Run, runs: Path) -> Place:
    return Place(run, next(runs.glob(f"*-{run.fingerprint[:8]}"), runs / run.name))


def keep(places: Iterable[Place], measured: Path) -> int:
    """Copy what a report needs of the measured runs: figures, cost and origin, but no texts and no weights.

    The digests of each run's files are recorded next to it, so that a report finds the run on machines without them.

    Args:
        places: places of the runs.
        measured: the folder to add them to.

    Returns:
        number of runs added.
    """
    added = 0
    for at in places:
        kept = _place(at.run, measured)
        if at.results.is_file():
            write_atomically(kept.contents, json.dumps(at.run.contents, indent=1, sort_keys=True) + "\n")
        if not kept.is_done and at.results.is_file():
            if at.measured_model:
                origin = at.measured_model / ORIGIN
                write_atomically(kept.folder / origin.relative_to(at.folder), origin.read_text("utf-8"))
            for task in Results.read(at.results).tasks:
                write_values(items_folder(kept.results), task, read_values(items_folder(at.results), task))
            write_atomically(kept.results, at.results.read_text("utf-8"))  # last, as it marks the run as complete
            added += 1
    return added
