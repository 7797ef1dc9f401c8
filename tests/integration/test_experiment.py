"""A study as a user runs it: real trainings and evaluations, resumable, under one MLflow run, and reported."""

import gzip
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from corpus import write_corpus
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from processes import Command, run

from inscp.__main__ import main
from inscp.experiment import configuration, processes

INSCP = "InsCP: {fit: {checkpoint.every_n_steps: 1}}"
STUDY = f"""
question: Which arm ends its turns?
fit: [base.yaml]
evaluate: [tasks.yaml]
arms:
  instruct: {{}}
  {INSCP}
  averaged: {{after: InsCP, merge: {{method: {{class_path: Average, init_args: {{weight: 0.5}}}}}}}}
  more tokens: {{extend: {{data: corpus.jsonl, tokens: 9}}}}
  broken: {{fit: {{data.train: broken.jsonl}}, after: more tokens}}
languages: {{zh-TW: {{}}}}
budgets: [1000]
projected: {{preference tuning: {{after: InsCP, tokens_per_token: 2, passes: 4}}}}
mlflow: {{experiment: arms}}
"""


def write_project(folder: Path, model: str) -> None:
    write_corpus(folder)
    prompts = [{"en": f"What is {i}?", "zh_tw": f"{i}是什麼？"} for i in range(4)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    (folder / "broken.jsonl").write_text("{no JSON\n")
    (folder / "base.yaml").write_text(f"""
model: {{pretrained: {model}, optimizer: {{learning_rate: 0.01}}}}
data: {{train: corpus.jsonl, row_length: 64, batch_size: 4, validation: {{held: corpus.jsonl}}}}
trainer: {{accelerator: cpu, devices: 1, precision: 32-true}}
""")
    (folder / "tasks.yaml").write_text("""
precision: fp32
tasks:
  language:
    class_path: LanguageAlignment
    init_args: {prompts: prompts.jsonl, languages: [en, zh-TW], max_new_tokens: 4}
""")
    (folder / "arms").mkdir()
    (folder / "arms" / "experiment.yaml").write_text(STUDY)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_project(folder, tiny_model_folder)
    return folder


class Here:
    """In the place of `subprocess.Popen`: a command of a study in this process, as each start costs seconds."""

    def __init__(self, line: list[str], **_: Any) -> None:
        assert line[:3] == [sys.executable, "-m", "inscp"]
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            self._status = main(line[3:])
        self.stdout = said.getvalue().splitlines(keepends=True)

    def wait(self) -> int:
        return self._status


def complained(project: Path, *arguments: str, status: int = 0) -> str:
    """What `experiment run` complains, and its commands, in this process."""
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as told:
        patch.chdir(project)
        patch.setattr("sys.argv", sys.argv)
        patch.setattr(processes, "subprocess", SimpleNamespace(Popen=Here, PIPE=None, STDOUT=None))
        ended_with = main(["experiment", "run", *arguments])
    assert ended_with == status, told.getvalue()
    return told.getvalue()


@pytest.fixture(scope="module")
def ran(project: Path) -> str:
    """What was complained while the study ran; one of its arms fails, for a wrong input."""
    return complained(project, "arms", status=2)


@contextmanager
def hidden(file: Path) -> Iterator[None]:
    """As where there is no such file, of which nothing is remembered."""
    aside = file.rename(file.with_suffix(".hidden"))
    configuration._contents.cache_clear()
    try:
        yield
    finally:
        aside.rename(file)
        configuration._contents.cache_clear()


def parent_of(project: Path) -> Run:
    """The study's own run in MLflow."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    [parent] = client.search_runs([client.get_experiment_by_name("arms").experiment_id], "run_name = 'arms'")
    return parent


def files(project: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in project.glob("outputs/experiments/runs/*/**/*") if path.is_file()}


def test_an_arm_that_fails_is_reported_and_keeps_no_other_from_running(project: Path, ran: str) -> None:
    last = ran.splitlines()[-1]
    assert last.startswith("error: 1 of 5 runs failed: broken, zh-TW, 1,000 tokens, seed 0: fit ended with status 2")
    assert "broken.jsonl" in last
    measured = [
        path.parent.name.rpartition("-")[0] for path in project.glob("outputs/experiments/runs/*/results-*.json")
    ]
    assert sorted(measured) == [
        "averaged-zh-tw-1000-tokens-seed-0",
        "inscp-zh-tw-1000-tokens-seed-0",
        "instruct-zh-tw",
        "more-tokens-zh-tw",
    ]
    [extended] = project.glob("outputs/experiments/runs/more-tokens*/model/inscp.json")
    assert json.loads(extended.read_text("utf-8"))["language"] == "zh-TW"


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("data.train: broken.jsonl", "data.train: nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("data.train: broken.jsonl", "data.tain: broken.jsonl", "tain: no such key. Did you mean data.train?"),
        ("data.train: broken.jsonl", "trainer.precision: 16-mixed", "trainer.precision: 16-mixed is not supported"),
        ("data.train: broken.jsonl", "trainer.strategy: deepspeed", "trainer.strategy: deepspeed is not supported"),
        ("weight: 0.5", "wait: 0.5", "wait"),
        ("data: corpus.jsonl, tokens", "data: nowhere.jsonl, tokens", "nowhere.jsonl: no such file"),
        ("zh-TW: {}", "zh-TW: {evaluate: {tasks.language.init_args.prompts: none.jsonl}}", "none.jsonl: no such file"),
        ("zh-TW: {}", "zh-TW: {evaluate: {server: {address: 'http://x', model: y}}}", "it would answer for every arm"),
        ("{data.train: broken.jsonl}", "{model.shield: {sources: none.jsonl, share: 0.5}}", "none.jsonl: no such file"),
    ],
)
def test_what_is_wrong_in_a_later_arm_is_reported_before_the_first_one_runs(
    right: str,
    wrong: str,
    told: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project)
    (project / "wrong").mkdir(exist_ok=True)
    (project / "wrong" / "experiment.yaml").write_text(STUDY.replace(right, wrong))
    assert main(["experiment", "run", "wrong", "--out", "nothing"]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (project / "nothing").exists()


def test_what_is_done_is_not_done_again(
    project: Path, ran: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    before = files(project)
    assert main(["experiment", "run", "arms", "--only", "averaged*"]) == 0
    assert files(project) == before
    assert parent_of(project).info.status == "SCHEDULED"  # the broken arm, which others could be at
    for weights in project.glob("outputs/experiments/runs/*/**/model.safetensors"):
        weights.rename(weights.with_suffix(".deleted"))  # which leaves what was measured
    assert main(["experiment", "run", "arms", "--dry_run"]) == 0
    assert main(["experiment", "report", "arms"]) == 0
    assert "Training cost" in (project / "outputs/experiments/arms/report/report.md").read_text("utf-8")
    for weights in project.glob("outputs/experiments/runs/*/**/model.deleted"):
        weights.rename(weights.with_suffix(".safetensors"))
    printed = capsys.readouterr().out
    assert printed.count(" done") == 2 + 4
    assert "broken, zh-TW, 1,000 tokens, seed 0" in printed
    assert "to run" in printed


def test_one_mlflow_run_holds_those_of_all_arms(project: Path, ran: str) -> None:
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("arms").experiment_id])
    by_name: dict[str, Run] = {one.info.run_name: one for one in found}
    parent = by_name.pop("arms")
    assert parent.data.tags["mlflow.note.content"] == "Which arm ends its turns?"
    assert set(by_name) >= {"instruct, zh-TW", "InsCP, zh-TW, 1,000 tokens, seed 0"}
    assert {one.data.tags["mlflow.parentRunId"] for one in by_name.values()} == {parent.info.run_id}
    trained = by_name["InsCP, zh-TW, 1,000 tokens, seed 0"]
    assert {"arm": "InsCP", "language": "zh-TW", "budget": "1000", "seed": "0"}.items() <= trained.data.tags.items()
    assert {"eval/language/zh-TW/ended", "train/loss", "cost/training/flops"} <= set(trained.data.metrics)


def test_the_report_sets_the_arms_side_by_side_and_stands_in_mlflow(
    project: Path, ran: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert main(["experiment", "report", "arms"]) == 0
    markdown = (project / "outputs/experiments/arms/report/report.md").read_text("utf-8")
    for title in (
        "Language alignment (Table 1)",
        "change from instruct",
        "Training cost",
        "at other model sizes",
    ):
        assert title in markdown
    for row in ("| instruct |", "| InsCP |", "| averaged |", "| more tokens |"):
        assert row in markdown
    assert "4 of 5 measured" in markdown
    rows = {row: re.findall(rf"^\| {row} \| ([\d,]+) \| (\S+) ", markdown, re.MULTILINE)[-1]
            for row in ("InsCP", r"InsCP, preference tuning \(not run\)")}  # fmt: skip
    (tokens, flops), (more_tokens, more_flops) = ([float(n.replace(",", "")) for n in of] for of in rows.values())
    assert flops == pytest.approx(3 * 2 * 8e9 * tokens, rel=0.01)
    assert (more_tokens, more_flops) == (3 * tokens, pytest.approx((3 + 2 * 4) * 2 * 8e9 * tokens, rel=0.01))
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    reports = client.list_artifacts(parent_of(project).info.run_id, "report")
    assert "report/report.html" in {file.path for file in reports}


def test_what_is_kept_is_done_and_reported_on_another_machine_and_holds_no_texts(
    project: Path, ran: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["experiment", "keep", "arms", "kept"]) == 0
    assert main(["experiment", "keep", "arms", "kept"]) == 0
    assert re.findall(r"(\d) runs added to kept", capsys.readouterr().out) == ["4", "0"]
    kept = {path: path.read_bytes() for path in project.glob("kept/**/*") if path.is_file()}
    kept = {path: gzip.decompress(of) if path.suffix == ".gz" else of for path, of in kept.items()}
    assert {path.suffix for path in kept} == {".json", ".gz"}
    assert not any("是什麼".encode() in of or b"What is" in of for of in kept.values())

    (project / "again").mkdir()
    other = f"{project}/again/tasks.yaml"
    Path(other).write_text((project / "tasks.yaml").read_text().replace("max_new_tokens: 4", "max_new_tokens: 2"))
    (project / "again" / "experiment.yaml").write_text(STUDY.replace("[tasks.yaml]", f"[{other}]"))
    assert main(["experiment", "run", "again", "--only", "instruct*"]) == 0
    assert main(["experiment", "keep", "again", "kept"]) == 0
    assert "1 runs added" in capsys.readouterr().out
    assert len(list(project.glob("kept/instruct-*/results-*.json"))) == 2  # of one model, both that was measured

    elsewhere = ["--out", "elsewhere", "--measured", "kept"]
    assert main(["experiment", "run", "arms", "--only", "averaged*", *elsewhere]) == 0
    assert not list(project.glob("elsewhere/runs/*/*"))
    assert len(re.findall("averaged.* done|InsCP.* done", capsys.readouterr().out)) == 2
    assert main(["experiment", "report", "arms"]) == 0
    with hidden(project / "corpus.jsonl"), hidden(project / "prompts.jsonl"):
        assert main(["experiment", "report", "arms", *elsewhere]) == 0
        said = capsys.readouterr()
        assert re.search(r"^warning: arms\.broken\.fit in zh-TW.*corpus\.jsonl: no such file", said.err, re.MULTILINE)
        assert "1 of 5 runs are missing" in said.out
        assert main(["experiment", "report", "arms"]) == 2  # nothing says what they held
    here, there = (
        re.findall(r"^\|.*", (project / out / "arms/report/report.md").read_text("utf-8"), re.MULTILINE)
        for out in ("outputs/experiments", "elsewhere")
    )
    assert here == there
    assert any("InsCP" in line for line in there)


def test_a_folder_of_measured_runs_that_is_not_there_is_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["experiment", "run", "arms", "--measured", "nowhere"]) == 2
    assert "--measured: there is no folder nowhere" in capsys.readouterr().err.splitlines()[-1]
    assert main(["experiment", "keep", "arms", "--kept", "kept"]) == 2
    assert "kept: it is a positional argument" in capsys.readouterr().err


def test_another_study_takes_what_is_there_and_makes_deleted_weights_again(project: Path, ran: str) -> None:
    made = {arm: next(project.glob(f"outputs/experiments/runs/{arm}-*/**/model/model.safetensors"))
            for arm in ("inscp", "averaged")}  # fmt: skip
    results = {file: file.read_bytes() for file in project.glob("outputs/experiments/runs/*/results-*.json")}
    twice = "  twice: {after: averaged, merge: {method: {class_path: Average, init_args: {weight: 0.5}}}}\nlanguages:"
    (project / "later").mkdir()
    (project / "later" / "experiment.yaml").write_text(STUDY.replace("languages:", twice))
    for weights in made.values():
        weights.unlink()
    told = complained(project, "later", "--only", "twice*")
    assert told.count("has no weights any more") == 2
    assert all(weights.is_file() for weights in made.values())  # the training from its last checkpoint
    assert len(list(project.glob("outputs/experiments/runs/twice-*/model/model.safetensors"))) == 1
    assert {file: file.read_bytes() for file in results} == results


def test_stopped_in_a_training_it_resumes_from_the_checkpoint(tmp_path: Path, tiny_model_folder: str) -> None:
    write_project(tmp_path, tiny_model_folder)
    longer = "InsCP: {fit: {data.token_budget: 40000, checkpoint.every_n_steps: 2}}"
    text = STUDY.replace(INSCP, longer).replace("evaluate: [tasks.yaml]", "evaluate: []")
    (tmp_path / "arms" / "experiment.yaml").write_text(text.replace("budgets: [1000]", ""))
    line = ("experiment", "run", "arms", "--only", "InsCP*", "--out", "out")
    process = Command(*line, cwd=tmp_path)
    process.until(lambda: list(tmp_path.glob("out/runs/*/*/*/checkpoints/step-*/whole.json")))
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 75
    assert "--ckpt_path" not in process.stderr, "which is not an option of a study"
    assert not list(tmp_path.glob("out/runs/*/*/*/model"))
    run(*line, cwd=tmp_path)
    assert len(list(tmp_path.glob("out/runs/*/*/*/model"))) == 1
    [log] = tmp_path.glob("out/runs/*/fit.log")
    assert log.read_text().count("no checkpoint yet") == log.read_text().count("resuming from ") == 1
