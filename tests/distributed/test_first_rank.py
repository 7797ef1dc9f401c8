"""What the first rank does by itself may take longer than the others wait in a collective."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch import EXPERTS, FSDP2, fit, project, random_model
from lightning import Callback

from inscp.callbacks.export import ExportAtEnd
from inscp.model import strategies, weights

_PATIENCE, _WORK = 10, 13


class Slow(Callback):
    """Collectives that give up after some seconds, and a conversion of names and an export that take longer."""

    def __init__(self) -> None:
        strategies.FSDP2._setup_distributed = partial_method(strategies.FSDP2._setup_distributed, _hurry)  # type: ignore
        weights.load_model = partial_method(weights.load_model, _work)
        ExportAtEnd._export = partial_method(ExportAtEnd._export, _work)  # type: ignore[method-assign]


def partial_method(method: Any, first: Any) -> Any:
    def both(self: Any, *given: Any) -> Any:
        first(self)
        return method(self, *given)

    return both


def _hurry(strategy: Any) -> None:
    strategy._timeout = timedelta(seconds=_PATIENCE)


def _work(_: Any) -> None:
    time.sleep(_WORK)


def test_the_others_wait_for_what_the_first_rank_does(tmp_path: Path, tiny_model_folder: str) -> None:
    folder = project(tmp_path, random_model(tmp_path / "model", EXPERTS, tiny_model_folder))
    fit(folder, "two", *FSDP2, "--trainer.max_steps", "2", "--trainer.callbacks+", "test_first_rank.Slow")
    assert list(folder.glob("two_runs/*/*/model/model.safetensors"))
