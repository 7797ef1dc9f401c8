"""This project's `fit`, as a user starts it: what `measure.py` compares with its peers."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning import Callback
from loop import given, peak_kib, report

from inscp.__main__ import main

times: list[float] = []
tokens: list[int] = []
peaks: list[int] = []


class Clock(Callback):
    """Notes when each step ends and how many targets it had."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        float(outputs["loss"])
        times.append(time.perf_counter())
        tokens.append(batch.step_targets)
        peaks.append(peak_kib())


if __name__ == "__main__":
    options = given()
    folder = Path(tempfile.mkdtemp())
    sys.modules["inscp_peer"] = sys.modules["__main__"]  # where the command line finds the callback
    keys = {
        "data.tagger": "inscp.data.tagging.PlainTagger",
        "model.pretrained": options["model"],
        "model.optimizer.learning_rate": 1e-5,
        "model.activation_checkpointing": options["activation_checkpointing"],
        "model.attn_implementation": options["attention"],
        "model.compile": json.dumps(options["compile"]),
        "data.train": options["texts"],
        "data.row_length": options["row_length"],
        "data.batch_size": options["rows"],
        "data.token_budget": 2 * options["rows"] * options["row_length"] * options["steps"],
        "trainer.max_steps": options["steps"],
        "trainer.accelerator": "gpu" if options["device"] == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.precision": "bf16-mixed" if options["precision"] == "bf16" else "32-true",
        "trainer.default_root_dir": folder,
        "trainer.callbacks": json.dumps([{"class_path": "inscp_peer.Clock"}]),
        "checkpoint.every_n_steps": 10**6,
        "mlflow.tracking_uri": f"sqlite:///{folder}/mlflow.db",
    }
    sys.argv = ["inscp", "fit", *(f"--{key}={value}" for key, value in keys.items())]
    try:
        status: str | int | None = main()
    except SystemExit as ended:
        status = ended.code
    report(times, tokens, peaks[-1])
    sys.exit(status)
