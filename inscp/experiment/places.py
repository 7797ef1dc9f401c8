"""Where the files of runs lie: in the folder of all outputs, or in one that `experiment keep` wrote.

A run's folder is named after a digest of all that decides its model, and its results file after a digest of all that
decides what is measured. A run is done where these files are, whichever study made them.
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
    """Where one run's files lie.

    Attributes:
        run: which one.
        folder: of its model and its results.
    """

    run: Run
    folder: Path

    @property
    def model(self) -> str | None:
        """Its model, as every command takes it; None where it is not made yet, or its weights were deleted."""
        if not self.run.command:
            return self.run.original
        return next((str(path) for path in reversed(self.exported) if any(path.glob("*.safetensors"))), None)

    @property
    def exported(self) -> list[Path]:
        """The folders of its model, the newest last, which tell how it was made also when the weights were deleted."""
        return sorted(self.folder.glob("*/*/model" if self.run.trains else "model"))

    @property
    def told_of(self) -> Path | None:
        """The folder of the model that was measured, else of the newest; None where it is not there.

        The same run may have been made twice, in another precision, say. Its results name the model that they are of.
        """
        if not self.results.is_file():
            return next(reversed(self.exported), None)
        measured = Path(Results.read(self.results).model).parts
        folders = {model.relative_to(self.folder).parts: model for model in self.exported}
        return next((model for parts, model in folders.items() if parts == measured[-len(parts) :]), None)

    @property
    def origin(self) -> Origin | None:
        """How the model was made that was measured, else the newest; None where it is the original, or not there.

        Raises:
            UserError: the file that says so is damaged.
        """
        model = self.told_of
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
        """Its results file, which is there when it has been measured."""
        return self.folder / f"results-{self.run.measure[:8]}.json"

    @property
    def contents(self) -> Path:
        """Where `keep` notes the digests of the files that the run names, for machines that do not have the files."""
        return self.folder / f"contents-{self.run.measure[:8]}.json"

    @property
    def is_done(self) -> bool:
        """Whether it has been measured; where nothing is, whether its model is there."""
        return self.results.is_file() if self.run.evaluate else self.model is not None


@dataclass(frozen=True)
class Places:
    """Where the runs of all studies lie.

    Args:
        out: the folder of all outputs.
        measured: a folder that `keep` has written, whose runs count as done too.
    """

    out: Path
    measured: Path | None = None

    @property
    def runs(self) -> Path:
        """The folder of what is made here."""
        return self.out / "runs"

    def arguments(self, action: str, folder: str) -> list[str]:
        """Of the command that does something with a study whose runs lie here.

        Args:
            action: `run`, `report`.
            folder: of the study.
        """
        out = ["--out", str(self.out)] if self.out != Path(OUT) else []
        known = ["--measured", str(self.measured)] if self.measured else []
        return ["experiment", action, folder, *out, *known]

    def command(self, action: str, folder: str) -> str:
        """The whole command line, as a person types it."""
        return join(["python", "-m", "inscp", *self.arguments(action, folder)])

    def of_study(self, name: str, folder: Path) -> Path:
        """Where what belongs to one study lies: its report, its jobs.

        Args:
            name: of the study.
            folder: that holds it.

        Raises:
            UserError: another study of this name has its own there.
        """
        into = self.out / name
        file, here = into / _STUDY, folder.resolve()
        there = Path(file.read_text("utf-8").strip()) if file.is_file() else here
        if there != here and (there / FILE).is_file():  # and was not moved
            raise UserError(str(folder), f"{into} belongs to {there}", "Give another --out, or rename a study.")
        return into

    def claim(self, name: str, folder: Path) -> None:
        """Note that the folder `of_study` belongs to this study."""
        write_atomically(self.out / name / _STUDY, f"{folder.resolve()}\n")

    @cached_property
    def _contents(self) -> list[Contents]:
        """Digests of the files that the kept runs name: of all runs together, and then of each run alone."""
        files = sorted(self.measured.glob("*/contents-*.json")) if self.measured else []
        kept = list(map(_read_contents, files))
        together = {name: digest for of in kept for name, digest in of.items()}
        return [together, *(of for number, of in enumerate(kept) if of not in kept[:number])]

    def told(self, run: Run) -> Run:
        """The run with the digests that its files had where it was kept, in the place of files that are not here.

        Kept runs may name the same file with other contents: those digests are taken by which the run is done.
        """
        if self.measured is None:
            return run
        alike = [replace(run, known=of) for of in self._contents]
        return next((one for one in alike if _place(one, self.measured).is_done), alike[0])

    def made(self, run: Run) -> Place:
        """Where it is made here, among the runs of all studies; another one may have made it under another title."""
        return _place(run, self.runs)

    def measured_or_made(self, run: Run) -> Place:
        """Where its results are: here, or else among what was measured elsewhere."""
        here = self.made(run)
        if self.measured is None or here.is_done:
            return here
        elsewhere = _place(run, self.measured)
        return elsewhere if elsewhere.is_done else here

    def left(self, runs: Iterable[Run]) -> list[Run]:
        """Those that are not done."""
        return [run for run in runs if not self.measured_or_made(run).is_done]


def _read_contents(file: Path) -> Contents:
    """
    Raises:
        UserError: it does not hold what `keep` has written.
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
    """Copy what a report needs of runs that are measured: figures, their cost and origin, no text and no weights.

    Beside each the digests of its files are noted, by which a report finds the run where the files are not.

    Args:
        places: of the runs.
        measured: the folder to add them to.

    Returns:
        how many were added.
    """
    added = 0
    for at in places:
        kept = _place(at.run, measured)
        if at.results.is_file():
            write_atomically(kept.contents, json.dumps(at.run.contents, indent=1, sort_keys=True) + "\n")
        if not kept.is_done and at.results.is_file():
            if at.told_of:
                origin = at.told_of / ORIGIN
                write_atomically(kept.folder / origin.relative_to(at.folder), origin.read_text("utf-8"))
            for task in Results.read(at.results).tasks:
                write_values(items_folder(kept.results), task, read_values(items_folder(at.results), task))
            write_atomically(kept.results, at.results.read_text("utf-8"))  # the last, as it says that all is there
            added += 1
    return added
