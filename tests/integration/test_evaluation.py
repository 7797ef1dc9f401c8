"""`evaluate` and `compare` as a user runs them: resumable, tracked in the run that made the model."""

import io
import json
import os
import re
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import processes
import pytest
from corpus import write_corpus
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from openai_server import serving

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


def run(*arguments: object, cwd: Path, status: int = 0) -> str:
    """What a command prints, or the one line in which it complains; in this process, as each start costs seconds."""
    printed, complained = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(complained):
        patch.chdir(cwd)
        patch.setattr("sys.argv", ["inscp"])
        ended_with = main([*map(str, arguments)])
    assert ended_with == status, complained.getvalue()
    errors = [line for line in complained.getvalue().splitlines() if line.startswith("error: ")]
    assert len(errors) == (status != 0)
    return errors[0] if errors else printed.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_corpus(folder)
    prompts = [{"en": f"What is {i}?", "zh_tw": f"{i}是什麼？"} for i in range(6)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    (folder / "tasks.yaml").write_text(CONFIG)
    data = ["--data.train=corpus.jsonl", "--data.language=fi", "--data.row_length=128", "--data.batch_size=2"]
    trainer = ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    processes.run("fit", f"--model.pretrained={tiny_model_folder}", *data, *trainer, cwd=folder)
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
    return run("evaluate", *options, "--model", trained, "--out", "after.json", cwd=project)


def test_results_have_value_interval_and_count_of_every_metric(project: Path, evaluated: str, trained: str) -> None:
    results = json.loads((project / "after.json").read_text("utf-8"))
    assert results["model"] == trained
    assert {"language", "retention"} == set(results["tasks"])
    for task in results["tasks"].values():
        assert set(task["metrics"]) == set(task["intervals"]) == set(task["counts"])
        assert task["n"] > 0
    assert results["tasks"]["language"]["counts"]["zh-TW/in_language"] == 6
    assert {"kl", "agreement", "held_out/x/perplexity"} <= set(results["tasks"]["retention"]["metrics"])
    assert re.search(r"zh-TW: end their turn +[\d.]+ +[\d.]+ to [\d.]+ +6", evaluated)


def test_the_run_that_made_the_model_has_its_evaluation_and_its_own_times(project: Path, evaluated: str) -> None:
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("inscp").experiment_id])
    by_arm = {found.data.params["arm"]: found for found in runs}
    assert sorted(by_arm) == ["InsCP", "instruct"]
    made = by_arm["InsCP"]
    step = int(made.data.params["steps"])
    [metric] = client.get_metric_history(made.info.run_id, "eval/language/zh-TW/ended")
    assert metric.step == step > 0
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
    run("evaluate", "--config", "tasks.yaml", "--precision", "fp32", "--model", trained,
                     "--out", "after.json", "--mlflow.enabled", "false", cwd=project)  # fmt: skip
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


def test_one_task_that_is_measured_again_leaves_the_others(project: Path, evaluated: str, trained: str) -> None:
    before = json.loads((project / "after.json").read_text())
    run("evaluate", "--config", "tasks.yaml", "--precision", "fp32", "--model", trained, "--out", "after.json",
        "--only", "[language]", "--mlflow.enabled", "false", cwd=project)  # fmt: skip
    after = json.loads((project / "after.json").read_text())
    assert after["tasks"]["retention"] == before["tasks"]["retention"]
    assert after["tasks"]["language"]["metrics"] == before["tasks"]["language"]["metrics"]
    assert after["environment"]["settings"] == before["environment"]["settings"]


def _keys(answers: bytes) -> list[str]:
    return [json.loads(line)["key"] for line in answers.splitlines()[1:]]


def test_two_evaluations_are_compared_item_by_item(project: Path, evaluated: str) -> None:
    printed = run("compare", "before.json", "after.json", cwd=project)
    results = [json.loads((project / f"{name}.json").read_text())["tasks"] for name in ("before", "after")]
    values = [task["retention"]["metrics"]["held_out/x/loss"] for task in results]
    row = re.search(r"x: loss +([\d.]+) +([\d.]+) +([-+][\d.]+) +(\S+ to \S+) +(<?[\d.]+) +(\d+)", printed)
    assert row is not None
    assert [float(row[1]), float(row[2])] == pytest.approx(values, abs=1e-3)
    assert int(row[6]) == results[0]["retention"]["counts"]["held_out/x/loss"]
    assert "different settings" not in printed
    assert re.search(r"x: perplexity +[\d,.]+ +[\d,.]+ +[-+][\d,.]+ +[-+]\S+ to \S+ +<?[\d.]+ +\d+", printed)
    same = run("compare", "after.json", changed(project, "same"), cwd=project)
    assert re.search(r"x: loss +\S+ +\S+ +0\.000 +0\.000 to 0\.000 +1\.000", same)


ALIGNMENT = ("--tasks.t", "LanguageAlignment", "--tasks.t.languages")


@pytest.mark.parametrize(("arguments", "complaint"), [
    ([*ALIGNMENT, "[fi]"], "no prompts in fi"),
    ([*ALIGNMENT, "[en]", "--tasks.t.prompts", "none.jsonl"], "no such file"),
    ([*ALIGNMENT, "[en]", "--tasks.t.prompts", "empty.jsonl"], "it is empty"),
    ([*ALIGNMENT, "[en]", "--tasks.t.max_new_tokens", "9999"], "leaves room"),
    ([*ALIGNMENT, "[en]", "--tasks.t.max_new_tokens", "0"], "max_new_tokens: must be at least 1, not 0"),
    ([*ALIGNMENT, "[en]", "--batch_size", "0"], "batch_size: must be at least 1, not 0 prompts"),
    ([*ALIGNMENT, "[en]", "--model", "no_template", "--out", "plain.json"], "no chat template"),
    ([*ALIGNMENT, "[en]", "--out", "corpus.jsonl/results.json"], "corpus.jsonl/results.items: it cannot be written"),
    (["--tasks.answers", "LanguageAlignment", "--tasks.answers.languages", "[en]"], "tasks.answers: the name is"),
    (["--tasks.t", "Retention"], "neither held_out nor prompts"),
    (["--config", "tasks.yaml", "--only", "[language, none]"], "only: there is no task none"),
    (["--config", "tasks.yaml", "--server", "{address: 'http://host/v1', model: m}"], "tasks.retention: it needs"),
    (["--config", "tasks.yaml", "--out", "after.json"], "another model"),
    (["--config", "tasks.yaml", "--model", "nowhere/"], "no such model"),
    (["--config", "tasks.yaml", "--out", "outputs"], "outputs is a folder"),
    ([*ALIGNMENT, "[english]"], "english: the language identification"),
])  # fmt: skip
def test_what_is_wrong_is_reported_in_one_line(
    project: Path, evaluated: str, tiny_model_folder: str, arguments: list[str], complaint: str
) -> None:
    (project / "empty.jsonl").write_text("")
    shutil.copytree(tiny_model_folder, project / "no_template", dirs_exist_ok=True)
    (project / "no_template" / "chat_template.jinja").unlink()
    given = ["--model", tiny_model_folder, "--out", "wrong.json", "--mlflow.enabled", "false", *arguments]
    assert complaint in run("evaluate", *given, cwd=project, status=2)


def test_a_model_that_cannot_be_asked_is_reported_before_a_run_or_a_file_is_made(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    (tmp_path / "prompts.jsonl").write_text('{"en": "Why?", "group": "x", "domain": "x"}', "utf-8")
    asked = [*ALIGNMENT, "[en]", "--tasks.t.prompts", "prompts.jsonl"]
    told = run("evaluate", "--model", "base", *asked, cwd=tmp_path, status=2)
    assert told.endswith("Use the instruct version of the model, or leave out t.")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "prompts.jsonl"}
    going_on = ["--tasks.b", "BOLD", "--tasks.b.prompts", "prompts.jsonl", "--tasks.b.prompt_field", "en"]
    assert "b " in run("evaluate", "--model", "base", *going_on, "--tasks.b.chat", "false", cwd=tmp_path)


def test_a_server_may_answer_instead_of_this_process(project: Path, trained: str) -> None:
    tasks = ["--tasks.t", "LanguageAlignment", "--tasks.t.languages", "[en]", "--tasks.t.prompts", "prompts.jsonl"]
    given = ["--model", trained, "--mlflow.enabled", "false", *tasks, "--server.model", "served"]
    with serving(lambda body: f"It is {body['messages'][-1]['content']}") as server:
        run("evaluate", *given, "--out", "served.json", "--server.address", server.address, cwd=project)
        assert sorted(server.prompts()) == sorted(f"What is {i}?" for i in range(6))
    rows = [json.loads(line) for line in (project / "served.items/t.jsonl").read_text().splitlines()]
    assert [row["shown"]["response"] for row in rows] == [f"It is What is {i}?" for i in range(6)]
    gone = [
        *given,
        "--config",
        "tasks.yaml",
        "--only",
        "[language]",
        "--out",
        "gone.json",
        "--server.address",
        server.address,
    ]
    assert "no server responds" in run("evaluate", *gone, cwd=project, status=2)


def test_a_served_model_is_tracked_under_the_name_that_the_server_knows(project: Path) -> None:
    tasks = ["--tasks.t", "LanguageAlignment", "--tasks.t.languages", "[en]", "--tasks.t.prompts", "prompts.jsonl"]
    with serving(lambda body: "So it is.") as server:
        given = ["--model", "llama3:8b", "--server.address", server.address, "--out", "named.json", *tasks]
        assert "MLflow run" in run("evaluate", *given, cwd=project)


def test_an_evaluation_that_breaks_off_keeps_what_it_has_and_closes_its_run(
    project: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second task is one of the user's own, in a file beside the configuration."""

    def tracked() -> Run:
        client = MlflowClient(f"sqlite:///{project}/mlflow.db")
        [found] = client.search_runs([client.get_experiment_by_name("own").experiment_id])
        return found

    (project / "own_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(project)
    tasks = [*ALIGNMENT, "[en]", "--tasks.t.prompts", "prompts.jsonl", "--tasks.t.max_new_tokens", "4",
             "--tasks.own", "own_task.Length", "--tasks.own.prompts", "prompts.jsonl", "--tasks.own.prompt_field", "en",
             "--tasks.own.max_new_tokens", "4"]  # fmt: skip
    given = ["--model", tiny_model_folder, "--out", "own.json", "--mlflow.experiment", "own", *tasks]
    assert run("evaluate", *given, "--tasks.own.breaks", "true", cwd=project, status=2) == "error: own: broken. Mend."
    assert not (project / "own.json").exists()
    assert tracked().info.status == "FAILED"
    answers = (project / "own.items" / "answers.jsonl").read_bytes()
    assert len(_keys(answers)) == 6
    assert "own " in run("evaluate", *given, cwd=project)
    assert (project / "own.items" / "answers.jsonl").read_bytes() == answers  # both tasks ask the same
    results = json.loads((project / "own.json").read_text())
    assert results["tasks"]["own"]["kind"] == "Length"
    assert results["environment"]["settings"]["own"]["licence"] == "CC0-1.0"
    found = tracked()  # the same run
    assert found.info.status == "FINISHED"
    assert "eval/t/en/ended" in found.data.metrics
    tables = json.loads(found.data.tags["mlflow.loggedArtifacts"])
    assert {"path": "generations/t.json", "type": "table"} in tables


OWN_TASK = """
from dataclasses import dataclass
from inscp.errors import UserError
from inscp.evaluation.task import Prompted

@dataclass(kw_only=True)
class Length(Prompted):
    source, licence = "own", "CC0-1.0"
    breaks: bool = False

    def values(self, rows, answers):
        if self.breaks:
            raise UserError("own", "broken", "Mend.")
        return [{"length": len(answer.response)} for answer in answers]
"""


def changed(project: Path, name: str, **changes: object) -> str:
    """A copy of the results of after.json in which the task `language` has something else, with its items."""
    whole = json.loads((project / "after.json").read_text("utf-8"))
    whole["tasks"]["language"] |= {key: value for key, value in changes.items() if key != "settings"}
    whole["environment"]["settings"]["language"] |= changes.get("settings", {})
    (project / f"{name}.json").write_text(json.dumps(whole))
    shutil.copytree(project / "after.items", project / f"{name}.items", dirs_exist_ok=True)
    return f"{name}.json"


def test_what_cannot_be_compared_is_reported_in_one_line(project: Path, evaluated: str) -> None:
    def complaint(file: str) -> str:
        return run("compare", "before.json", file, cwd=project, status=2)

    (project / "old.json").write_text('{"schema": 0, "tasks": {}}')
    assert "version 0" in complaint("old.json")
    assert "no results" in complaint("nothing.json")
    assert "language is Refusals, version" in complaint(changed(project, "kind", kind="Refusals"))
    assert "language is LanguageAlignment, version 9" in complaint(changed(project, "version", version=9))
    others = changed(project, "others")
    items = project / "others.items" / "language.jsonl"
    items.write_text(items.read_text("utf-8").replace('"id": "', '"id": "other '), "utf-8")
    assert "it shares no item of language with before.json" in complaint(others)


def test_what_was_asked_otherwise_is_reported_beside_the_numbers(project: Path, evaluated: str) -> None:
    printed = run("compare", "before.json", changed(project, "longer", settings={"limit": 5}), cwd=project)
    assert re.findall("different settings: .*", printed) == ["different settings: limit None, after 5"]


def test_stopped_by_a_signal_it_continues_in_the_same_mlflow_run(project: Path, tiny_model_folder: str) -> None:
    asked = "tasks: {bold: {class_path: BOLD, init_args: {prompts: many.jsonl, prompt_field: en, max_new_tokens: 32}}}"
    rows = [{"en": f"{i} of them", "group": str(i % 2), "domain": "x"} for i in range(400)]
    (project / "many.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (project / "many.yaml").write_text(asked)
    command = ("evaluate", "--config", "many.yaml", "--model", tiny_model_folder, "--out", "many.json",
               "--batch_size", "4", "--mlflow.experiment", "stopped")  # fmt: skip
    process, answers = processes.Command(*command, cwd=project), project / "many.items" / "answers.jsonl"
    process.until(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= 20)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 75
    assert process.stderr.splitlines()[-1].startswith("SIGTERM: stopped; rerun the same command to resume")
    spent = json.loads((project / "many.items" / "cost.json").read_text("utf-8"))
    assert spent["tokens"] > 0
    n_answered = answers.read_bytes().count(b"\n")
    assert n_answered < 400
    run(*command, cwd=project)
    total = json.loads((project / "many.json").read_text("utf-8"))["environment"]["cost"]
    assert total["tokens"] > spent["tokens"]
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    [found] = client.search_runs([client.get_experiment_by_name("stopped").experiment_id])
    assert found.info.status == "FINISHED"
