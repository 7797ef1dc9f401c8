"""A model behind `transformers serve` answers as the same model does in this process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow_servers import wait_until

from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.server import ServedModel, Server
from inscp.evaluation.subject import Backend, Subject
from inscp.evaluation.tasks.mt_bench import MTBench
from inscp.records import Turn

QUESTIONS = [{"question_id": k, "category": "writing", "turns": [f"寫第{k}首詩", "再短一點"]} for k in range(2)]


@pytest.fixture(scope="module")
def served(tiny_model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny model, behind a server of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", tiny_model_folder, *options]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(is_up)
        yield Server(f"http://127.0.0.1:{port}/v1", tiny_model_folder, concurrency=2)
    finally:
        process.kill()
        process.wait()


def subject(backend: Backend, folder: Path) -> Subject:
    return Subject(backend, folder, lambda *_: lambda: None)


def test_answers_are_those_of_the_model_in_this_process(served: Server, tiny_model_folder: str, tmp_path: Path) -> None:
    talk = (Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "今天天氣很好"))
    prompts = [talk, talk[:1], (Turn("document", "Once upon a time"),)]
    there = subject(ServedModel(served), tmp_path / "there").generate("", prompts, 12)
    here = subject(LocalModel(tiny_model_folder, torch.float32, 2), tmp_path / "here").generate("", prompts, 12)
    assert there == here


def test_mt_bench_runs_with_a_served_model_and_a_judge_that_talks_nonsense(
    served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inscp.evaluation.judge._REPLY_TOKENS", 8)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    bench = MTBench(questions=str(tmp_path / "questions.jsonl"), language="zh-TW", judge=served, max_new_tokens=8)
    bench.check()
    items = bench.items(subject(ServedModel(served), tmp_path / "out"))
    assert [(item.id, dict(item.values)) for item in items] == [("0", {"unparsed": True}), ("1", {"unparsed": True})]
    assert all(len(item.shown["answers"]) == 2 for item in items)
