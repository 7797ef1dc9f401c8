"""The MLflow page shows the two arms side by side, in a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus import data_module, fit, module

from inscp.callbacks.provenance import run_name
from inscp.data.tagging import InsCPTagger, PlainTagger
from inscp.tracking.environment import provenance_tags
from inscp.tracking.tracked_run import Tracking
from inscp.tracking.tracker import MLflowTracker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")


@pytest.fixture
def address(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> Iterator[str]:
    """A running MLflow server with one run of each arm; the address of the page that compares runs."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for tagger in (InsCPTagger(), PlainTagger()):
        data = data_module(corpus, tiny_model_folder, tagger=tagger, language="fi", batch_size=4)
        learner = module(tiny_model_folder)
        tracker = MLflowTracker(Tracking(uri), run_name(learner, data), provenance_tags())
        fit(tmp_path, data, learner=learner, logger=tracker)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    server = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(server, timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield tracker.page(server)
    finally:
        os.killpg(serving.pid, signal.SIGKILL)  # it has nothing to keep, and may take its time where others compute
        serving.wait()


def test_both_arms_stand_side_by_side_under_names_that_tell(address: str, tmp_path: Path) -> None:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/browser",
               "--virtual-time-budget=20000", "--window-size=1600,900", "--dump-dom", address]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=180)
    for expected in ("InsCP tiny-llama fi", "orgCP tiny-llama fi"):
        assert expected in done.stdout
