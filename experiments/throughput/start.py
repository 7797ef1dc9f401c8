"""How long a user waits: for help, for `inspect`, for the first step of the quickstart, and between the steps.

    python experiments/throughput/start.py

The quickstart's model and rows are in the cache. A step's own work is its forward and backward pass and its update;
what lies between two of them (data, logging, callbacks) is the loop's.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning import Callback
from measure import machine

QUICKSTART = ["--config", "configs/quickstart.yaml"]
SHORT = ["--trainer.max_steps", "8", "--before_after.prompts", "null", "--data.validation", "{}"]


class Clock(Callback):
    """Prints when a step's work begins and ends, and when the update is done."""

    def on_train_batch_start(self, *_: Any) -> None:
        print("STEP begin", time.time(), flush=True)

    def on_train_batch_end(self, *_: Any) -> None:
        print("STEP end", time.time(), flush=True)


def seconds(*arguments: str) -> float:
    """Of one command, started in a process of its own."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "inscp", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    print(machine(), "\n")
    for name, arguments in {"--help": ["--help"], "inspect": ["inspect", *QUICKSTART]}.items():
        print(f"| `{name}` | {statistics.median(seconds(*arguments) for _ in range(3)):.2f} s |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        callback = ["--trainer.callbacks", '[{"class_path": "start.Clock"}]', "--trainer.default_root_dir", folder,
                    "--mlflow.tracking_uri", f"sqlite:///{folder}/mlflow.db"]  # fmt: skip
        command = [sys.executable, "-m", "inscp", "fit", *QUICKSTART, *SHORT, *callback]
        start = time.time()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
    marks = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("STEP")]
    times = [float(when) for _, when in marks]
    work = sum(after - before for before, after in zip(times[::2], times[1::2], strict=True))
    print(f"| first step of the quickstart begins after | {times[0] - start:.1f} s |")
    between = 1 - work / (times[-1] - times[0])
    print(f"| from the first micro-batch to the last, the time between them | {between:.2%} |")


if __name__ == "__main__":
    main()
