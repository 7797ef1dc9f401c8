"""The model that a command prompts, in this process or on a server, with cached answers and their cost."""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from inscp.cost.flops import WorkCounter
from inscp.cost.ledger import Cost, Ledger
from inscp.errors import UserError
from inscp.evaluation.caching_model import Backend, CachingModel
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.served_model import ServedModel
from inscp.evaluation.server import Server
from inscp.model.device import best_device
from inscp.model.precision import InferencePrecision, inference_dtype
from inscp.paths import write_json
from inscp.progress import ProgressLines

_COST = "cost.json"


class CostRecord:
    """The cost so far, kept in a file and including that of earlier attempts, whose answers are cached.

    Args:
        ledger: prices.
        counter: counts the tokens and FLOPs of the model.
        folder: folder of the answers and of the file.
    """

    def __init__(self, ledger: Ledger, counter: WorkCounter, folder: Path) -> None:
        self._file = folder / _COST
        earlier = Cost(**json.loads(self._file.read_text("utf-8"))) if self._file.exists() else None
        self._running = ledger.start([best_device()], earlier=earlier)
        self._counter, self._kept = counter, time.monotonic()

    def save(self, every: float = 0.0) -> None:
        """Save it, for an attempt that resumes where this one stops.

        Args:
            every: minimum seconds since it was last saved.
        """
        if time.monotonic() >= self._kept + every:
            self._kept = time.monotonic()
            self._write(self._running.cost(self._counter.tokens, self._counter.flops))

    def stop(self) -> Cost:
        """Save and return the final cost."""
        return self._write(self._running.stop(self._counter.tokens, self._counter.flops))

    def _write(self, total: Cost) -> Cost:
        write_json(self._file, total.plain())
        return total


def open_model(
    model: str,
    server: Server | None,
    folder: Path,
    precision: InferencePrecision | None,
    batch_size: int,
    ledger: Ledger,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[CachingModel, CostRecord | None]:
    """The model with its cache, and its cost; None if a server answers, as nothing is counted then.

    Args:
        model: folder, Hub id, GGUF file or PyPI wheel; with a server, the model that it serves, under any name.
        server: answers instead of this process.
        folder: folder of the answers.
        precision: by default bf16 if the hardware is faster in it, else fp32.
        batch_size: prompts per batch.
        ledger: prices.
        temperature, seed: of sampling in this process.

    Raises:
        UserError: the server does not respond, or the folder holds answers of another model or other settings.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("WORLD_SIZE", "several processes would all compute the same answers", "Start a single process.")
    counter, cost_record = WorkCounter(), None
    backend: Backend
    if server:
        backend = ServedModel.connected(server, model)
    else:
        backend = LocalModel(model, inference_dtype(precision), batch_size, counter, temperature, seed)
        cost_record = CostRecord(ledger, counter, folder) if ledger.enabled else None
    return CachingModel(backend, folder, partial(_start_progress, cost_record)), cost_record


def _start_progress(cost_record: CostRecord | None, what: str, total: int) -> Callable[[], None]:
    lines = ProgressLines(what, total, unit="items")

    def advance() -> None:
        lines.advance(1, 1, 1)
        if cost_record:
            cost_record.save(every=60.0)

    return advance
