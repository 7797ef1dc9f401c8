"""What was measured is found by what decided it, and kept runs where their files are not any more."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from inscp.commands.experiment import keep_study
from inscp.cost.ledger import Cost
from inscp.errors import UserError
from inscp.evaluation.items import Item, items_folder, write_items
from inscp.evaluation.results import Results, TaskResult
from inscp.evaluation.statistics import means
from inscp.experiment import configuration, plots
from inscp.experiment.costs import training_cost
from inscp.experiment.places import Places, keep
from inscp.experiment.report import study_page
from inscp.experiment.runs import Run
from inscp.experiment.study import Arm, Language, Study
from inscp.model.origin import Origin


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("model: {pretrained: org/model}\ndata: {train: corpus.jsonl}\n")
    Path("tasks.yaml").write_text("tasks: {t: {class_path: LanguageAlignment, init_args: {prompts: prompts.jsonl}}}\n")
    arms = {"instruct": Arm(), "orgCP": Arm(fit={}), "CP then SFT": Arm(fit={"data.epochs": 2}, after="orgCP")}
    return Study("study", "?", ["base.yaml"], arms, {"fi": Language()}, ["tasks.yaml"])


def hold(**files: str | None) -> None:
    """Let files hold this, or not be there, and nothing be remembered of them."""
    for name, text in files.items():
        file = Path(f"{name}.jsonl")
        file.unlink(missing_ok=True) if text is None else file.write_text(text)
    configuration._contents.cache_clear()


def measure(study: Study, where: Places, *arms: str, model: str = "m") -> None:
    items = [Item("a", {"fi/ended": True})]
    tasks = {"t": TaskResult("LanguageAlignment", means(items), 1, 1, 0.0)}
    for run in study.runs():
        if arms and run.arm not in arms:
            continue
        at = where.made(run)
        Results(str(at.folder / model), tasks, {}).write(at.results)
        write_items(items_folder(at.results), "t", items)


def make(study: Study, where: Places, arm: str, precision: str, made: str) -> None:
    """As a training at that time leaves the arm's model."""
    run = next(run for run in study.runs() if run.arm == arm)
    cost = Cost(tokens=1000, flops=3e9, wall_seconds=2.0, device="1 x CPU").plain()
    origin = Origin("org/model", arm, "fi", {"precision": precision, "seed": 0}, cost=cost)
    file = where.made(run).folder / "name" / made / "model" / "inscp.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(asdict(origin)))


def left(study: Study, measured: Path) -> list[Run]:
    where = Places(Path("nothing"), measured)
    return where.left(study.runs(where.complete))


def test_what_was_kept_of_files_of_one_name_is_found_whatever_they_held(study: Study) -> None:
    where, kept = Places(Path("out")), Path("kept")
    studies = {}
    for number, corpus, prompts in ((1, "old", "old"), (3, "new", "old"), (4, "new", "new")):
        hold(corpus=corpus, prompts=prompts)
        Path(f"{number}.yaml").write_text(
            f"model: {{pretrained: org/model}}\ndata: {{train: corpus.jsonl, x: {number}}}"
        )
        studies[number] = Study("study", "?", [f"{number}.yaml"], study.arms, study.languages, study.evaluate)
        measure(studies[number], where)
        assert keep(map(where.made, studies[number].runs()), kept) > 0
        assert keep(map(where.made, studies[number].runs()), kept) == 0
    assert [len(left(one, kept)) for one in studies.values()] == [2, 2, 0]  # instruct is there in all
    hold(corpus=None, prompts=None)
    assert [len(left(one, kept)) for one in studies.values()] == [0, 0, 0]
    hold(prompts="another")
    assert [len(left(one, kept)) for one in studies.values()] == [3, 3, 3]


def test_what_was_not_kept_is_reported(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study").mkdir()
    arms = "instruct: {}, orgCP: {fit: {}}, CP then SFT: {fit: {data.epochs: 2}, after: orgCP}"
    text = f"question: q\nfit: [base.yaml]\nevaluate: [tasks.yaml]\narms: {{{arms}}}\nlanguages: {{fi: {{}}}}\n"
    Path("study/experiment.yaml").write_text(text)
    measure(study, Places(Path("outputs/experiments")), "orgCP")
    keep_study("study", "kept")
    assert capsys.readouterr().out.splitlines() == [
        "1 runs added to kept",
        "1 of 3 kept; not evaluated: instruct, fi; CP then SFT, fi, seed 0",
    ]
    measure(study, Places(Path("outputs/experiments")))
    keep_study("study", "kept")
    assert capsys.readouterr().out == "2 runs added to kept\n"


def test_two_studies_of_one_name_do_not_take_each_others_report(study: Study, tmp_path: Path) -> None:
    where = Places(Path("out"))
    for folder in (Path("x/same"), Path("y/same")):
        folder.mkdir(parents=True)
        (folder / "experiment.yaml").touch()
    assert where.of_study("same", Path("x/same")) == Path("out/same")
    where.claim("same", Path("x/same"))
    assert where.of_study("same", tmp_path / "y" / ".." / "x" / "same") == Path("out/same")
    with pytest.raises(UserError, match=r"y/same: out/same belongs to .*/x/same\. Give another --out"):
        where.of_study("same", Path("y/same"))
    Path("x").rename("z")
    assert where.of_study("same", Path("z/same")) == Path("out/same")


def test_the_command_of_a_study_is_whole_and_quoted(study: Study) -> None:
    kept = Places(Path("my out"), Path("kept's"))
    assert kept.command("run", "my study") == (
        """python -m inscp experiment run 'my study' --out 'my out' --measured 'kept'"'"'s'"""
    )
    assert Places(Path("outputs/experiments/")).command("report", "s") == "python -m inscp experiment report s"
    with pytest.raises(UserError, match="Run `python -m inscp experiment run 'a b' --out 'my out'` first"):
        study_page(study, study.runs(), "a b", Places(Path("my out")), Path("page"))


@pytest.mark.parametrize("text", ["{", "[]", '{"corpus.jsonl": 1}', "\xff"])
def test_damaged_contents_of_kept_runs_are_reported(study: Study, text: str) -> None:
    measure(study, Places(Path("out")))
    keep(map(Places(Path("out")).made, study.runs()), Path("kept"))
    file = next(Path("kept").glob("*/contents-*.json"))
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{file}: it does not record the digests of the files"):
        left(study, Path("kept"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pretrained": "x", "arm": "a", "language": "fi", "cost": [1]}'])
def test_a_damaged_origin_is_reported(study: Study, text: str) -> None:
    run = study.runs()[1]
    origin = Places(Path("out")).made(run).folder / "a" / "b" / "model" / "inscp.json"
    origin.parent.mkdir(parents=True)
    origin.write_text(text)
    with pytest.raises(UserError, match=f"{origin.parent}: its inscp.json does not record how the model was made"):
        training_cost(Places(Path("out")).made(run))


def test_a_report_shows_the_model_that_was_measured_and_no_other_that_was_made(study: Study) -> None:
    where, kept = Places(Path("out")), Places(Path("nothing"), Path("kept"))
    run = next(run for run in study.runs() if run.arm == "orgCP")
    make(study, where, "orgCP", "32-true", "20260101-000000")
    make(study, where, "orgCP", "bf16-mixed", "20260102-000000")
    assert where.made(run).measured_model == where.made(run).exported[-1]
    measure(study, where, "orgCP", model="name/20260101-000000/model")
    keep([where.made(run)], Path("kept"))
    for at in (where.made(run), kept.measured_or_made(run)):
        assert at.origin is not None
        assert at.origin.training["precision"] == "32-true"
    measure(study, where, "orgCP", model="name/20260103-000000/model")
    assert where.made(run).origin is None, "it is not there any more"


def test_a_report_says_above_its_tables_what_it_is_about(study: Study) -> None:
    where = Places(Path("out"))
    make(study, where, "orgCP", "32-true", "20260101-000000")
    measure(study, where, "instruct")
    measure(study, where, "orgCP", model="name/20260101-000000/model")
    page = study_page(study, study.runs(), "study", where, Path("page"))
    assert page.about[""]["precision of training"] == "32-true"
    assert page.about["Arms"] == {"instruct": "the original model, unchanged", "orgCP": "as base.yaml"}
    assert page.about["Terms"].keys() == {"orgCP"}
    measure(study, where, "CP then SFT")
    page = study_page(study, study.runs(), "study", where, Path("page"))
    assert page.about["Arms"]["CP then SFT"] == "after: orgCP, fit: {data.epochs: 2}"
    notes = {grid.title: grid.note for grid in page.sections[0].grids}
    assert "validation included" in notes["Training cost"]
    page.write(Path("page"))
    for form, line in (("report.md", "- orgCP: as base.yaml"), ("report.html", "<dt>orgCP</dt><dd>as base.yaml</dd>")):
        text = (Path("page") / form).read_text("utf-8")
        assert text.index(line) < text.index("What the answers are like")


def test_a_second_training_begins_at_the_row_of_the_first(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = Arm(merge={"method": "Average"}, after="orgCP")
    several = replace(study, budgets=[10, 20], arms={**study.arms, "averaged": merge})
    found: dict[str, plots.Amount] = {}
    monkeypatch.setattr(plots, "against_tokens", lambda _, amounts, __: found.update(amounts))
    measure(several, Places(Path("out")))
    study_page(several, several.runs(), "study", Places(Path("out")), Path("page"))
    assert found == {
        "instruct": plots.Amount("instruct", 0),
        **{f"orgCP, {n} tokens": plots.Amount("orgCP", n) for n in (10, 20)},
        **{f"CP then SFT, {2 * n} tokens": plots.Amount("CP then SFT", 2 * n, f"orgCP, {n} tokens") for n in (10, 20)},
        **{f"averaged, {n} tokens": plots.Amount("averaged", n) for n in (10, 20)},
    }
