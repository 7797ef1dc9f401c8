"""What the first rank does by itself may take longer than the others wait in a collective."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch import FSDP2, fit, project
from lightning import Callback

from inscp.callbacks.before_after import BeforeAfter
from inscp.callbacks.export import ExportAtEnd
from inscp.model import strategies

_PATIENCE, _WORK = 10, 13


class Slow(Callback):
    """Collectives that give up after some seconds, and an interview and an export that take longer."""

    def __init__(self) -> None:
        strategies.FSDP2._setup_distributed = partial_method(strategies.FSDP2._setup_distributed, _hurry)  # type: ignore
        BeforeAfter._measure = partial_method(BeforeAfter._measure, _work)  # type: ignore[method-assign]
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
    folder = project(tmp_path, tiny_model_folder)
    (folder / "prompts.jsonl").write_text(json.dumps({"fi": "Mikä on 2?"}), "utf-8")
    asked = {"prompts": "prompts.jsonl", "languages": "[fi]", "max_new_tokens": "4"}
    options = [part for name, value in asked.items() for part in (f"--before_after.{name}", value)]
    done = fit(
        folder, "two", *FSDP2, *options, "--trainer.max_steps", "2", "--trainer.callbacks+", "test_first_rank.Slow"
    )
    assert "prompts in fi" in done.stderr
    assert "repeat themselves" in done.stdout
