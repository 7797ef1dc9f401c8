"""What a training run resumes from, and where its files are."""

import atexit
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from inscp.errors import Stopped, UserError
from inscp.experiment.configuration import LAYOUT, without
from inscp.model.checkpoint import FOLDER_KEY, complete_checkpoints, read_metadata
from inscp.yaml_file import read_yaml

CONFIG, CHECKPOINTS, ENDED = "config.yaml", "checkpoints", "ended"
"""Names in a run's folder: the whole configuration (also in a checkpoint), the checkpoints' folder, and the mark that
the run is finished: exported, prompted and tracked."""

_DIRPATH = "checkpoint.dirpath"

_DECIDE = ("seed_everything", "model", "data")
_MAY_CHANGE = (*LAYOUT, "data.batch_size", "data.validation", "data.validation_tagger", "data.force_resume")
"""Keys of those sections that may change when a run is resumed."""


def last_checkpoint(runs: Path, given: Path | None, config: Mapping[str, Any], is_fit: bool) -> Path | None:
    """What `--ckpt_path last` means: a run's newest complete checkpoint; None if there is none.

    Args:
        runs: the folder of all runs of one name.
        given: the folder of the checkpoints, if the configuration names one.
        config: the whole configuration of the run.
        is_fit: whether the run trains, and does not only measure.

    Raises:
        Stopped: the run is finished.
        UserError: the given folder is another run's, or all checkpoints are damaged.
    """
    if given:
        if found := _newest([given]):
            _require_same_training(found, config)
        return found
    attempts = _attempts(runs, config)
    if is_fit and (ended := _ended_without_checkpoint(attempts, config)):
        raise _ended(ended)
    return _newest([of / CHECKPOINTS for of in attempts])


def continued_run(checkpoint: Path, is_last: bool) -> Path | None:
    """The folder of the run that resumes from a checkpoint.

    None if a new run starts from it, with its own folder and MLflow run: that is the case if the checkpoint's run is
    finished, or has later checkpoints, which are not touched.

    Args:
        checkpoint: the checkpoint to resume from.
        is_last: whether `--ckpt_path last` found it.

    Raises:
        Stopped: the run is finished.
    """
    beside = checkpoint.parent.parent  # not where it was written, if the outputs were moved
    is_inside = checkpoint.parent.name == CHECKPOINTS and (beside / CONFIG).exists()
    run = beside if is_inside else Path(read_metadata(checkpoint)[FOLDER_KEY])
    is_ended = _has_ended(run)
    if is_ended and is_last:
        raise _ended(run)
    return None if is_ended or _has_newer(checkpoint, run) else run


@rank_zero_only
def _tell(what: str) -> None:
    print(what, file=sys.stderr)


def _has_ended(folder: Path) -> bool:
    """Whether a run is finished, and its model has not been deleted since."""
    return (folder / ENDED).exists() and (folder / "model").exists()


def _ended(folder: Path) -> Stopped:
    message = f"this run is already finished; its model is {folder / 'model'}"
    return Stopped("" if getattr(rank_zero_only, "rank", 0) else message, 0)


def _newest(folders: Sequence[Path]) -> Path | None:
    """The newest complete checkpoint of the first folder that has one, printed on standard error.

    Args:
        folders: folders that may contain checkpoints, the newest first.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    for folder in folders:
        whole, damaged = complete_checkpoints(folder)
        for error in damaged:
            _tell(f"warning: {error.where}: {error.what}; skipped")
        if whole:
            _tell(f"resuming from {whole[0]}")
            return whole[0]
        if damaged:
            raise UserError(str(folder), "every checkpoint is damaged", "Move them away to start over.")
    _tell("no checkpoint yet: starting from the beginning")
    return None


def _attempts(runs: Path, config: Mapping[str, Any]) -> list[Path]:
    """The folders of earlier attempts at a run, the newest first.

    Args:
        runs: the folder of all runs of one name. Those that differ in what determines a run (their learning rate, say)
            are reported on standard error.
        config: the whole configuration of the run.
    """
    found = []
    for folder in sorted((file.parent for file in runs.glob(f"*/{CONFIG}")), reverse=True):
        if not (kept := _read(folder / CONFIG)):
            _tell(f"warning: {folder / CONFIG}: truncated or corrupt; this run is skipped")
        elif other := next(_differing(_deciding(kept), _deciding(config)), None):
            if (folder / CHECKPOINTS).exists():
                _tell(f"{folder} has a different {other}: not resumed (--ckpt_path CHECKPOINT would)")
        else:
            found.append(folder)
    return found


def _ended_without_checkpoint(attempts: Sequence[Path], config: Mapping[str, Any]) -> Path | None:
    """The folder of the newest attempt that has finished without a checkpoint; None if a newer one has checkpoints.

    Args:
        attempts: as returned by `_attempts`.
        config: the whole configuration of the run.
    """
    for folder in attempts:
        if (folder / CHECKPOINTS).exists():
            return None
        lengths = [of.get("trainer", {}).get("max_steps") for of in (_read(folder / CONFIG), config)]
        if _has_ended(folder) and lengths[0] == lengths[1]:  # not a trial of a few steps
            return folder
    return None


def _require_same_training(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Check that a checkpoint in a given folder belongs to a run of this configuration.

    Raises:
        UserError: it belongs to another run.
    """
    kept = yaml.safe_load(read_metadata(checkpoint).get(CONFIG, "{}"))
    if other := next(_differing(_deciding(kept), _deciding(config)), None):
        what = f"{checkpoint} is from a run with a different {other}"
        raise UserError(_DIRPATH, what, f"Give this run its own folder, or resume with --ckpt_path {checkpoint}.")


def require_no_others(folder: Path, resumes_from: Path | None) -> None:
    """Check that a given folder holds no checkpoints but those of the resumed run: others would be removed.

    Args:
        folder: folder of the checkpoints.
        resumes_from: the run's newest checkpoint, there or elsewhere; None if a new run starts.

    Raises:
        UserError: it holds others.
    """
    whole, _ = complete_checkpoints(folder)
    if whole and not (resumes_from and whole[0].samefile(resumes_from)):
        what = f"it contains {whole[0]}, from which this run does not resume"
        raise UserError(_DIRPATH, what, "Give this run its own folder, or resume from the newest: --ckpt_path last.")


def _read(file: Path) -> dict[str, Any]:
    """A saved configuration; empty if it is damaged or missing."""
    try:
        return read_yaml(file, "")
    except UserError:
        return {}


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    return without({name: config.get(name) for name in _DECIDE}, *_MAY_CHANGE)


def _differing(kept: Any, now: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the keys whose values differ."""
    if isinstance(kept, Mapping) and isinstance(now, Mapping):
        for key in {**kept, **now}:
            yield from _differing(kept.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif kept != now:
        yield name


def _has_newer(checkpoint: Path, run: Path) -> bool:
    """Whether a run has complete checkpoints of later steps, next to this one or in the run's folder."""
    beside = {checkpoint.parent, run / CHECKPOINTS}
    return any(path.name > checkpoint.name for folder in beside for path in complete_checkpoints(folder)[0])


def new_folder(runs: Path) -> Path:
    """A new folder for a run, named after the time; unique, as several processes may start in the same second.

    If it is empty when the process ends it is removed, and `runs` too if nothing else is in it.
    """
    name = f"{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            atexit.register(_remove_empty, folder)
            return folder
    raise AssertionError


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it is not empty
        folder.rmdir()
        folder.parent.rmdir()
