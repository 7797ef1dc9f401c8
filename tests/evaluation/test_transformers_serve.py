"""A model behind `transformers serve` answers as the same model does in this process, and judges MT-Bench."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.local_model import LocalModel
from inscp.records import Turn

RECIPE = Path(__file__).parents[2] / "experiments" / "evaluation" / "served.sh"
PROMPTS = [{"prompt": "今天天氣很好，", "label": "safe", "domain": "d", "group": "g"},
           {"prompt": "Once upon a time", "label": "safe", "domain": "d", "group": "h"}]  # fmt: skip
QUESTIONS = [{"question_id": k, "category": "writing", "turns": [f"寫第{k}首詩", "再短一點"]} for k in range(2)]
TASKS = """
tasks:
  talk: {class_path: Refusals, init_args: {prompts: prompts.jsonl, max_new_tokens: 12}}
  text: {class_path: BOLD, init_args: {prompts: prompts.jsonl, max_new_tokens: 12, chat: false}}
  bench:
    class_path: MTBench
    init_args:
      questions: questions.jsonl
      language: zh-TW
      max_new_tokens: 8
      judge: {address: "http://127.0.0.1:PORT/v1", model: MODEL, options: {max_tokens: 8}}
"""


@pytest.fixture(scope="module")
def served(tiny_model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipe has evaluated the tiny model, which answers and judges itself."""
    folder = tmp_path_factory.mktemp("served")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    for name, rows in (("prompts", PROMPTS), ("questions", QUESTIONS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks.yaml").write_text(TASKS.replace("PORT", port).replace("MODEL", tiny_model_folder))
    recipe = {"MODEL": tiny_model_folder, "CONFIG": "tasks.yaml", "OUT": "served.json", "PORT": port}
    server = {"SERVE": "python -m transformers.cli.transformers serve", "SERVE_OPTIONS": "--device cpu --dtype float32"}
    ours = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(RECIPE.parents[2]),
    }
    command = ["bash", str(RECIPE), "--mlflow.enabled", "false", "--server.concurrency", "2"]
    environment = os.environ | recipe | server | ours
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.1", int(port))) != 0  # the server has ended
    return folder


def shown(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = (folder / "served.items" / f"{task}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["shown"] for line in lines]


def test_answers_are_those_of_the_model_in_this_process(served: Path, tiny_model_folder: str, tmp_path: Path) -> None:
    here = CachingModel(LocalModel(tiny_model_folder, torch.float32, 2), tmp_path, lambda *_: lambda: None)
    for task, role in (("talk", "user"), ("text", "document")):
        answers = here.generate("", [(Turn(role, str(row["prompt"])),) for row in PROMPTS], 12)  # type: ignore[arg-type]
        there = [(answer["response"], answer["ended"]) for answer in shown(served, task)]
        assert there == [(answer.response, answer.ended) for answer in answers]
    for question, answered in zip(QUESTIONS, shown(served, "bench"), strict=True):
        first, second = question["turns"]  # type: ignore[misc]
        talk = (Turn("user", first), Turn("assistant", answered["answers"][0]), Turn("user", second))
        assert answered["answers"] == [answer.response for answer in here.generate("", [talk[:1], talk], 8)]


def test_mt_bench_counts_a_judge_that_talks_nonsense(served: Path) -> None:
    task = json.loads((served / "served.json").read_text("utf-8"))["tasks"]["bench"]
    assert (task["metrics"], task["counts"], task["n"]) == ({"unparsed": 1.0}, {"unparsed": 2}, 2)


def test_a_server_that_does_not_start_ends_the_recipe_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "server").write_text("echo no such model: $1; exit 3")
    recipe = {"MODEL": "some/model", "CONFIG": "c", "OUT": "o.json", "SERVE": "bash server"}
    command = ["bash", str(RECIPE)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | recipe, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "no such model: some/model\n")
