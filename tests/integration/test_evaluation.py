"""`evaluate` and `compare` as a user runs them: resumable, tracked in the run that made the model."""

import json
import re
from pathlib import Path

import pytest
from corpus import write_corpus
from mlflow.tracking import MlflowClient
from openai_server import serving
from processes import run

from inscp.__main__ import main

CONFIG = """
tasks:
  language:
    class_path: LanguageAlignment
    init_args: {prompts: prompts.jsonl, languages: [en, zh-TW], max_new_tokens: 8}
  retention:
    class_path: Retention
    init_args: {held_out: {x: corpus.jsonl}, prompts: prompts.jsonl, prompt_field: en, max_new_tokens: 8}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_corpus(folder)
    prompts = [{"en": f"What is {i}?", "zh_tw": f"{i}是什麼？"} for i in range(6)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    (folder / "tasks.yaml").write_text(CONFIG)
    data = ["--data.train=corpus.jsonl", "--data.language=fi", "--data.row_length=128", "--data.batch_size=2"]
    trainer = ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    run("fit", f"--model.pretrained={tiny_model_folder}", *data, *trainer, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def trained(project: Path) -> str:
    [model] = project.glob("outputs/*/*/model")
    return str(model.relative_to(project))


@pytest.fixture(scope="module")
def evaluated(project: Path, trained: str, tiny_model_folder: str) -> str:
    """What was printed for the trained model; the original is evaluated too."""
    options = ("--config", "tasks.yaml", "--precision", "fp32")
    run("evaluate", *options, "--model", tiny_model_folder, "--out", "before.json", cwd=project)
    return run("evaluate", *options, "--model", trained, "--out", "after.json", cwd=project).stdout


def test_results_have_value_interval_and_count_of_every_metric(project: Path, evaluated: str, trained: str) -> None:
    results = json.loads((project / "after.json").read_text("utf-8"))
    assert results["model"] == trained
    assert {"language", "retention"} == set(results["tasks"])
    for task in results["tasks"].values():
        assert set(task["metrics"]) == set(task["intervals"]) == set(task["counts"])
        assert task["n"] > 0
    assert results["tasks"]["language"]["counts"]["zh-TW/in_language"] == 6
    assert {"kl", "agreement", "held_out/x/perplexity"} <= set(results["tasks"]["retention"]["metrics"])
    assert re.search(r"zh-TW/ended +[\d.]+ +[\d.]+ to [\d.]+ +6", evaluated)


def test_the_run_that_made_the_model_has_its_evaluation_and_its_own_times(project: Path, evaluated: str) -> None:
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("inscp").experiment_id])
    by_arm = {found.data.params["arm"]: found for found in runs}
    assert sorted(by_arm) == ["InsCP", "instruct"]
    made = by_arm["InsCP"]
    step = int(made.data.params["steps"])
    [metric] = client.get_metric_history(made.info.run_id, "eval/language/zh-TW/ended")
    assert metric.step == step > 0
    cost = json.loads((project / "after.json").read_text("utf-8"))["environment"]["cost"]
    assert cost["tokens"] > 0
    assert made.data.metrics["cost/evaluation/flops"] == cost["flops"] > 0
    assert made.data.metrics["cost/training/tokens"] == made.data.metrics["train/tokens"]
    assert made.data.params["cost/training/energy_from"]
    last_training = client.get_metric_history(made.info.run_id, "train/loss")[-1]
    assert made.info.status == "FINISHED"
    assert made.info.end_time < metric.timestamp > last_training.timestamp
    table = json.loads(
        Path(client.download_artifacts(made.info.run_id, "generations/language.json")).read_text("utf-8")
    )
    assert table["columns"][:3] == ["language", "prompt", "response"]
    assert len(table["data"]) == 12
    assert "eval/retention/held_out/x/perplexity" in by_arm["instruct"].data.metrics


def test_what_was_answered_is_not_asked_again(project: Path, evaluated: str, trained: str) -> None:
    answers = project / "after.items" / "answers.jsonl"
    before = answers.read_bytes()
    kept, lost = before[:-100], before[-100:].count(b"\n")  # as a kill leaves it: inside a line
    answers.write_bytes(kept)
    found = json.loads((project / "after.json").read_text())
    run("evaluate", "--config", "tasks.yaml", "--precision", "fp32", "--model", trained, "--out", "after.json",
                "--mlflow.enabled", "false", cwd=project)  # fmt: skip
    after = answers.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    assert after.startswith(whole)
    assert after.removeprefix(whole).count(b"\n") == lost  # in whatever order the missing ones were packed
    assert set(_keys(after)) == set(_keys(before))
    results = json.loads((project / "after.json").read_text())
    for name, task in found["tasks"].items():  # the missing ones are packed otherwise
        assert results["tasks"][name]["metrics"] == pytest.approx(task["metrics"], rel=1e-5, nan_ok=True)
    cost = results["environment"]["cost"]["tokens"], found["environment"]["cost"]["tokens"]
    assert cost[1] < cost[0] < 2 * cost[1]  # what was asked before has been paid before


def _keys(answers: bytes) -> list[str]:
    return [json.loads(line)["key"] for line in answers.splitlines()[1:]]


def test_two_evaluations_are_compared_item_by_item(project: Path, evaluated: str) -> None:
    printed = run("compare", "before.json", "after.json", cwd=project).stdout
    results = [json.loads((project / f"{name}.json").read_text())["tasks"] for name in ("before", "after")]
    values = [task["retention"]["metrics"]["held_out/x/loss"] for task in results]
    row = re.search(r"held_out/x/loss +([\d.]+) +([\d.]+) +([-+][\d.]+) +(\S+ to \S+) +([\d.]+) +(\d+)", printed)
    assert row is not None
    assert [float(row[1]), float(row[2])] == pytest.approx(values, abs=1e-3)
    assert int(row[6]) == results[0]["retention"]["counts"]["held_out/x/loss"]
    same = run("compare", "after.json", "after.json", cwd=project).stdout
    assert re.search(r"held_out/x/loss +\S+ +\S+ +\+0.000 +\+0.000 to \+0.000 +1.000", same)


ALIGNMENT = ("--tasks.t", "LanguageAlignment", "--tasks.t.languages")


@pytest.mark.parametrize(("arguments", "complaint"), [
    ([*ALIGNMENT, "[fi]"], "no fi in it"),
    ([*ALIGNMENT, "[en]", "--tasks.t.prompts", "none.jsonl"], "no such file"),
    ([*ALIGNMENT, "[en]", "--tasks.t.prompts", "empty.jsonl"], "nothing in it"),
    ([*ALIGNMENT, "[en]", "--tasks.t.max_new_tokens", "9999"], "leaves room"),
    (["--config", "tasks.yaml", "--out", "after.json"], "another model"),
    (["--config", "tasks.yaml", "--model", "nowhere/"], "no such model"),
])  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(
    project: Path, evaluated: str, tiny_model_folder: str, arguments: list[str], complaint: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (project / "empty.jsonl").write_text("")
    monkeypatch.chdir(project)
    monkeypatch.setattr("sys.argv", ["inscp"])
    given = ["--model", tiny_model_folder, "--out", "wrong.json", "--mlflow.enabled", "false", *arguments]
    assert main(["evaluate", *given]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert complaint in line


def test_a_server_may_answer_in_the_place_of_this_process(project: Path, trained: str) -> None:
    tasks = ["--tasks.t", "LanguageAlignment", "--tasks.t.languages", "[en]", "--tasks.t.prompts", "prompts.jsonl"]
    given = ["--model", trained, "--mlflow.enabled", "false", *tasks, "--server.model", "served"]
    with serving(lambda body: f"It is {body['messages'][-1]['content']}") as server:
        run("evaluate", *given, "--out", "served.json", "--server.address", server.address, cwd=project)
        assert sorted(server.prompts()) == sorted(f"What is {i}?" for i in range(6))
    rows = [json.loads(line) for line in (project / "served.items/t.jsonl").read_text().splitlines()]
    assert [row["shown"]["response"] for row in rows] == [f"It is What is {i}?" for i in range(6)]
    gone = run("evaluate", *given, "--out", "gone.json", "--server.address", server.address, cwd=project, status=2)
    assert "no server answers there" in gone.stderr


def test_results_of_other_tasks_or_versions_are_not_compared(project: Path, evaluated: str) -> None:
    (project / "old.json").write_text('{"schema": 0, "tasks": {}}')
    assert "version 0" in run("compare", "old.json", "after.json", cwd=project, status=2).stderr
    assert "no results" in run("compare", "nothing.json", "after.json", cwd=project, status=2).stderr
