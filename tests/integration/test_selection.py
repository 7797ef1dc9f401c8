"""`score` and `select` as a user runs them: resumable, refusing what is wrong, and read by `fit`."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from corpus import write_corpus
from mlflow.tracking import MlflowClient
from processes import Command, run
from transformers import AutoConfig, AutoModelForCausalLM

from inscp.commands.score import score
from inscp.errors import UserError
from inscp.pretrained import load_tokenizer

PAIRS = [
    {"instruction": f"Kysymys {i}: mikä on {i} kertaa {i + 1}?", "output": f"Vastaus on {i * (i + 1)}. " * (1 + i % 5)}
    for i in range(30)
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection")
    write_corpus(folder)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in PAIRS), "utf-8")
    (folder / "english.jsonl").write_text("\n".join('{"text": "The river runs."}' for _ in range(40)), "utf-8")
    return folder


DATA = "[corpus.jsonl, pairs.jsonl]"


@pytest.fixture(scope="module")
def scores(project: Path, tiny_model_folder: str) -> Path:
    done = run("score", "--model", tiny_model_folder, "--data", DATA, "--out", "scores", cwd=project)
    assert re.search(r"pairs\.jsonl +30 ", done.stdout)
    return project / "scores"


def test_every_record_is_scored_and_any_reader_of_parquet_reads_it(scores: Path) -> None:
    rows = pq.read_table(scores).to_pylist()
    assert [row["id"] for row in rows[:2]] == ["corpus.jsonl:1", "corpus.jsonl:2"]
    assert len(rows) == 70
    assert list(rows[0]) == ["id", "source", "n_tokens", "n_bytes", "nll", "perplexity", "bits_per_byte"]
    report = json.loads((scores / "_report.json").read_text())
    assert report["sources"]["all"]["tokens"] == sum(row["n_tokens"] for row in rows)


def test_a_killed_scoring_resumes_and_touches_nothing_that_was_done(
    tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"{i} on luku. " * (4 + i % 3)}) for i in range(6000)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines), "utf-8")
    command = ["score", "--model", tiny_model_folder, "--data", "many.jsonl", "--out", "scores"]
    process = Command(*command, cwd=tmp_path)
    process.until((tmp_path / "scores" / "_report.json").exists)  # what it has cost so far
    process.kill()
    before = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "scores").glob("part-*")}
    run(*command, cwd=tmp_path)
    after = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "scores").glob("part-*")}
    assert len(after) > len(before) >= 1
    assert before.items() <= after.items()
    ids = pq.read_table(tmp_path / "scores").column("id").to_pylist()
    assert ids == [f"many.jsonl:{i}" for i in range(1, 6001)]
    report = json.loads((tmp_path / "scores" / "_report.json").read_text())
    cost = report["cost"]
    assert cost["tokens"] >= report["sources"]["all"]["tokens"]  # those of the killed attempt are among them
    monkeypatch.chdir(tmp_path)
    score(tiny_model_folder, "many.jsonl", "scores")  # there is nothing left to do, and it stays what it has cost
    again = json.loads((tmp_path / "scores" / "_report.json").read_text())["cost"]
    assert (again["tokens"], again["flops"]) == (cost["tokens"], cost["flops"])
    assert cost["flops"] > 0


def test_a_record_that_is_too_long_is_an_error_or_counted(project: Path, tiny_model_folder: str) -> None:
    (project / "long.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 5000}), "utf-8")
    command = ["score", "--model", tiny_model_folder, "--data", "long.jsonl", "--max_characters", "1000"]
    done = run(*command, "--out", "no", cwd=project, status=2)
    assert "error: long.jsonl:2: a record of more than 1,000 characters" in done.stderr
    assert not (project / "no").exists()
    done = run(*command, "--out", "some", "--on_bad_record", "skip", cwd=project)
    assert "skipped 1 of long.jsonl: a record of more than 1,000 characters" in done.stdout


def test_a_scoring_that_fails_keeps_what_can_be_gone_on_from_and_nothing_else(
    tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answered, unanswered = (json.dumps(row) + "\n" for row in (PAIRS[0], {"text": "Kukaan ei vastaa."}))
    Path("at_once.jsonl").write_text(unanswered + answered, "utf-8")
    with pytest.raises(UserError, match=r"at_once\.jsonl:1"):
        score(tiny_model_folder, "at_once.jsonl", "scores", given="response")
    assert not Path("scores").exists()
    Path("later.jsonl").write_text(answered * 1024 + unanswered, "utf-8")  # in the second chunk
    with pytest.raises(UserError, match=r"later\.jsonl:1025"):
        score(tiny_model_folder, "later.jsonl", "scores", given="response")
    assert pq.read_table("scores").num_rows == 1024
    score(tiny_model_folder, "later.jsonl", "scores", given="response", on_bad_record="skip")


def test_a_model_that_lets_texts_of_a_row_see_each_other_scores_each_by_itself(
    tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(tiny_model_folder)
    config = AutoConfig.for_model(
        "lfm2", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
        initializer_range=0.5,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained("convolves")
    tokenizer.save_pretrained("convolves")
    texts = ["The river runs.", "A mill stands at the river."]
    for name, chosen in (("one", texts[:1]), ("other", texts[1:]), ("both", texts)):
        Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in chosen), "utf-8")
        score("convolves", f"{name}.jsonl", name, batch_tokens=1000, precision="fp32")
    one, other, both = (pq.read_table(name).column("nll").to_pylist() for name in ("one", "other", "both"))
    assert both == pytest.approx(one + other, rel=1e-4)


def write_config(project: Path, **changes: Any) -> str:
    config = {
        "data": ["corpus.jsonl", "pairs.jsonl"],
        "scores": "scores",
        "out": "chosen",
        "filters": [
            {"class_path": "Length", "init_args": {"minimum": 8}},
            {"class_path": "NearDuplicates"},
            {"class_path": "Perplexity", "init_args": {"upper": 0.9}},
        ],
        "budget": {"tokens": 1500, "replay": "english.jsonl", "replay_share": 0.1},
    }
    (project / "select.yaml").write_text(json.dumps(config | changes), "utf-8")
    return "select.yaml"


def test_what_is_selected_is_what_the_filters_say_and_fit_trains_on_it(
    project: Path, scores: Path, tiny_model_folder: str
) -> None:
    done = run("select", "--config", write_config(project), cwd=project)
    chosen = project / "chosen"
    rows = pq.read_table(chosen / "selected.parquet").to_pylist()
    by_id = {row["id"]: row["perplexity"] for row in pq.read_table(scores).to_pylist()}
    assert all(row["perplexity"] == by_id[row["id"]] for row in rows)
    assert min(row["n_tokens"] for row in rows) >= 8
    assert 0.95 * 1350 < sum(row["n_tokens"] for row in rows) <= 1350
    report = json.loads((chosen / "_report.json").read_text("utf-8"))
    [read, *funnel, replay] = [line for line in done.stdout.splitlines() if line.strip()][1:7]
    assert read.split()[1] == "70"
    assert [line.split()[0] for line in funnel] == ["Length", "NearDuplicates", "Perplexity", "Budget"]
    assert int(funnel[-1].split()[1]) == len(rows) == report["filters"][-1]["records"]
    assert replay.split()[:2] == ["+", "replay"]
    for before, after in zip([70, *(f["records"] for f in report["filters"])], report["filters"], strict=False):
        assert before - sum(after["dropped"].values()) == after["records"]
    page = (chosen / "_report.html").read_text("utf-8")
    assert page.count("<svg") == 2
    assert "http" not in re.sub(
        r'(xmlns\S*|href|rdf:\w+)="[^"]*"|<dc:.*?/>|http://www\.w3\.org\S*', "", page, flags=re.S
    )

    (project / "fit.yaml").write_text(
        f"model: {{pretrained: {tiny_model_folder}}}\n"
        "data: {train: chosen, language: fi, row_length: 64, batch_size: 4}\n", "utf-8",
    )  # fmt: skip
    done = run("fit", "--config", "fit.yaml", cwd=project)
    assert f"{len(rows) + report['replay']['records']} records (0 skipped)" in done.stderr
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    [run_found] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    scoring = json.loads((scores / "_report.json").read_text())["cost"]
    assert run_found.data.metrics["cost/scoring/tokens"] == scoring["tokens"] > 0
    logged = [artifact.path for artifact in client.list_artifacts(run_found.info.run_id, "selection")]
    assert logged == ["selection/1_report.html", "selection/1_report.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": [{"class_path": "Perplexity", "init_args": {"maximum": 1.001}}], "budget": None},
         "error: Perplexity: it drops every record"),
        ({"budget": {"tokens": 10**6}}, "error: budget.tokens: 1,000,000 tokens are requested"),
        ({"budget": {"tokens": 1000, "replay": "english.jsonl", "replay_share": 0.9}},
         "error: budget.replay_share: 900 tokens are requested"),
        ({"data": "english.jsonl"}, "error: scores: english.jsonl was not scored in it"),
        ({"scores": None}, "error: select: there is nothing to count tokens with"),
        ({"scores": "english.jsonl"}, "error: english.jsonl: it contains no scores"),
        ({"filters": [{"class_path": "Perplexety"}]}, "Perplexety"),
        ({"filters": [{"class_path": "Language", "init_args": {"languages": ["finnish"]}}]}, "finnish"),
        ({"filters": [{"class_path": "Language", "init_args": {"languages": 5}}]}, "languages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    project: Path, scores: Path, changes: dict[str, Any], message: str
) -> None:
    done = run("select", "--config", write_config(project, out="nothing", **changes), cwd=project, status=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(project.glob("nothing*"))
    assert ("dropped" in done.stdout) == ("budget.tokens: " in message or "drops every record" in message)  # the funnel


@pytest.mark.parametrize("name", ["zh_tw", "shard"])
def test_a_shipped_configuration_selects_from_the_shipped_sample(
    name: str, tmp_path: Path, tiny_model_folder: str
) -> None:
    config = Path(__file__).parents[2] / "configs" / "select" / f"{name}.yaml"
    sample = "samples:zh_tw/train_pairs.jsonl"
    command = ["select", "--config", config, "--data", sample, "--out", "selected"]
    if name == "zh_tw":
        run("score", "--model", tiny_model_folder, "--data", sample, "--out", "scores", cwd=tmp_path)
    else:
        command += ["--model", tiny_model_folder]
    done = run(*command, cwd=tmp_path, status=0 if name == "zh_tw" else 2)
    # The shard's language is Finnish, and its filter says so of Chinese text.
    expected = (done.stdout, "Budget") if name == "zh_tw" else (done.stderr, "error: Language: it drops every record")
    assert expected[1] in expected[0]
