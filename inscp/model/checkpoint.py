"""Checkpoints: folders of safetensors shards and plain values, each either complete or absent.

torch.distributed.checkpoint writes and re-shards the tensors, so that any number of ranks can read what any other
number wrote. The files are safetensors, because torch's own format has a pickle: reading a checkpoint never runs code.
A checkpoint is written to a temporary folder, with all file sizes in a manifest, and renamed when it is on disk.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from inscp.errors import RunError, UserError
from inscp.paths import write_atomically

ORIGIN_KEY = "inscp"
"""The key of the run's `Origin` in a checkpoint."""

TRACKING_KEY = "mlflow"
"""The key of the MLflow run and its unsent data in a checkpoint."""

FOLDER_KEY = "folder"
"""The key of the run's folder in a checkpoint."""

_METADATA, _MANIFEST = "about.pt", "whole.json"
_PARTIAL = ".partial"


def step_folder(folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint; the names sort by step."""
    return folder / f"step-{step:08}"


class CheckpointWriter:
    """Writes checkpoints, one at a time; every rank takes part.

    Args:
        asynchronous: return once the tensors are copied to CPU memory; files are written while training continues.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        self._asynchronous = asynchronous
        self._pending: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None

    def write(
        self,
        folder: Path,
        tensors: Mapping[str, torch.Tensor],
        about: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint, or start to; `wait` raises if it failed. The previous one must have been waited for.

        Args:
            folder: folder of the checkpoint; must not exist yet.
            tensors: `PART.NAME` -> tensor, sharded or whole; each part and each state of the optimizer is written to
                its own files.
            about: everything else, as plain values.
            extra: more values for the manifest (see `read_manifest`).
        """
        partial = folder.with_name(folder.name + _PARTIAL)
        kinds = {name: _kind(name) for name in tensors}
        files = {kind: index for index, kind in enumerate(dict.fromkeys(kinds.values()), 1)}
        storage = HuggingFaceStorageWriter(
            str(partial), {name: files[kind] for name, kind in kinds.items()}, save_distributed=True
        )

        pending: Future[None] = Future()

        def settle(save: Callable[[], Any]) -> None:
            try:
                save()
                if is_first_rank():
                    _commit(partial, folder, about, extra or {})
            except (Exception, CheckpointException) as error:
                if is_first_rank():
                    shutil.rmtree(partial, ignore_errors=True)
                pending.set_exception(RunError(f"checkpoint {folder.name} could not be written: {_cause(error)}"))
            else:
                pending.set_result(None)

        self._pending = pending
        if self._asynchronous:
            # The thread's collectives must not mix with those of training.
            if self._group is None and dist.is_initialized():
                self._group = dist.new_group(backend="gloo")
            saved = dcp.async_save(dict(tensors), storage_writer=storage, process_group=self._group)
            saved.add_done_callback(lambda done: settle(done.result))  # type: ignore[union-attr]
        else:
            settle(lambda: dcp.save(dict(tensors), storage_writer=storage))

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            RunError: it could not be written; earlier checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def is_first_rank() -> bool:
    """Whether this is the first rank, which alone writes the files that all ranks share."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _cause(error: BaseException) -> BaseException:
    failures = getattr(error, "failures", None)  # of a CheckpointException, by rank
    return next(iter(failures.values()))[0] if failures else error


def _kind(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{part}.{rest.rpartition('.')[2]}" if part == "optimizer" else part


def _commit(partial: Path, folder: Path, about: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    torch.save(dict(about), partial / _METADATA)
    sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    (partial / _MANIFEST).write_text(json.dumps({"files": sizes, **extra}), "utf-8")
    for path in (*partial.iterdir(), partial):  # contents must be on disk before the name that refers to them
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    partial.rename(folder)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a complete checkpoint.

    Raises:
        UserError: the checkpoint does not exist, or one of its files is missing or truncated.
    """
    if not (path / _MANIFEST).is_file():
        raise UserError(str(path), "no such checkpoint", "Give a checkpoint written by fit (…/checkpoints/step-…).")
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text("utf-8"))
        sizes = manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(path / _MANIFEST), "the checkpoint's manifest is damaged", "Use the previous checkpoint."
        ) from error
    for name, size in sizes.items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            what = f"the checkpoint is damaged: {found:,} of {size:,} bytes exist"
            raise UserError(str(path / name), what, "Use the previous checkpoint, or --ckpt_path last.")
    return manifest


def add_to_manifest(path: Path, values: Mapping[str, Any]) -> None:
    """Add values to the manifest of a complete checkpoint."""
    write_atomically(path / _MANIFEST, json.dumps(read_manifest(path) | dict(values)))


def read_metadata(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint except its tensors.

    Raises:
        UserError: the checkpoint does not exist, is damaged, or was not written by this program.
    """
    if whole := complete_checkpoints(path)[0]:
        raise UserError(str(path), "it is the folder of all checkpoints", f"Give one of them, such as {whole[0]}.")
    read_manifest(path)
    try:
        about: dict[str, Any] = torch.load(path / _METADATA, map_location="cpu", weights_only=True)
        about[ORIGIN_KEY]
    except Exception as error:  # torch raises a dozen types for files of other formats
        raise UserError(str(path), "not a checkpoint of this program", "Give one written by fit.") from error
    return about


def stored_tensors(path: Path) -> dict[str, torch.Size]:
    """Name -> shape of every tensor in a folder of safetensors, whole or in shards."""
    return {name: kept.size for name, kept in _stored(path).items()}


def stored_dtypes(path: Path) -> set[torch.dtype]:
    """The floating-point dtypes of the tensors in a folder of safetensors."""
    return {kept.properties.dtype for kept in _stored(path).values() if kept.properties.dtype.is_floating_point}


def _stored(path: Path) -> dict[str, Any]:
    """Name -> torch's metadata of every tensor."""
    return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata


def read_tensors(path: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors, sharded or whole, in place; each rank reads its own slices and casts them to their dtype."""
    dcp.load(dict(into), storage_reader=HuggingFaceStorageReader(str(path)))


def exported_name(name: str, stored: Mapping[str, Any]) -> str:
    """The name in a checkpoint of the tensor that is exported as `model.NAME`: its average, if there is one.

    Args:
        name: `model.NAME`.
        stored: the checkpoint's tensors by name.
    """
    average = "average." + name.removeprefix("model.")
    return average if average in stored else name


def complete_checkpoints(folder: Path) -> tuple[list[Path], list[UserError]]:
    """The complete checkpoints of a folder, newest first, and the errors of the others."""
    whole, damaged = [], []
    for path in sorted(folder.glob("step-*[0-9]"), reverse=True):
        try:
            read_manifest(path)
        except UserError as error:
            damaged.append(error)
        else:
            whole.append(path)
    return whole, damaged


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; an interrupted removal leaves no damaged one."""
    shutil.rmtree(path.rename(path.with_name(path.name + _PARTIAL)), ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left partly written or partly removed."""
    for path in folder.glob(f"step-*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
