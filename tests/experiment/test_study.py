"""A study spells out its runs, each once, each behind the one that it starts from."""

from dataclasses import replace
from pathlib import Path

import pytest

from inscp.commands.experiment import read_study
from inscp.errors import UserError
from inscp.experiment.study import Arm, Language, Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "base.yaml").write_text("model: {pretrained: org/model}\ndata: {train: x, token_budget: 10}\n")
    (tmp_path / "tasks.yaml").write_text("tasks: {t: {class_path: LanguageAlignment, init_args: {languages: [en]}}}\n")
    return Study(
        "?",
        [str(tmp_path / "base.yaml")],
        {
            "averaged": Arm(merge={"method": "Average"}, after="InsCP"),
            "instruct": Arm(),
            "InsCP": Arm(fit={}),
            "CP then SFT": Arm(fit={"data.tagger": "ConversationTagger"}, after="orgCP"),
            "orgCP": Arm(fit={"data.tagger": "PlainTagger"}),
        },
        {
            "fi": Language(),
            "zh-TW": Language(fit={"data.train": "y"}, evaluate={"tasks.t.init_args.languages": ["zh-TW"]}),
        },
        evaluate=[str(tmp_path / "tasks.yaml")],
        seeds=[0, 1],
        budgets=[100, 200],
    )


def test_what_trains_nothing_is_there_once_and_all_else_for_every_seed_and_budget(study: Study) -> None:
    titles = [run.title for run in study.runs()]
    assert len(titles) == len(set(titles)) == 2 * (1 + 4 * 4)
    assert titles.count("instruct, fi") == 1
    assert "averaged, zh-TW, 200 tokens, seed 1" in titles


def test_a_run_stands_behind_what_it_starts_from(study: Study) -> None:
    names = [run.name for run in study.runs()]
    for run in study.runs():
        if run.before:
            assert names.index(run.before.name) < names.index(run.name)
    averaged = next(run for run in study.runs() if run.title == "averaged, fi, 100 tokens, seed 1")
    assert [run.arm for run in averaged.lineage] == ["InsCP", "averaged"]
    assert averaged.before is not None
    assert averaged.before.fit is not None
    assert averaged.before.fit["data"] | {} == {"train": "x", "token_budget": 100, "language": "fi", "seed": 1}


def test_a_language_changes_training_and_evaluation(study: Study) -> None:
    run = next(run for run in study.runs() if run.title.startswith("InsCP, zh-TW"))
    assert run.fit is not None
    assert run.fit["data"]["train"] == "y"
    assert run.evaluate["tasks"]["t"]["init_args"]["languages"] == ["zh-TW"]


def test_a_change_makes_new_runs_of_what_it_changes_alone(study: Study) -> None:
    changed = replace(study, arms=study.arms | {"orgCP": Arm(fit={"data.tagger": "PlainTagger", "data.row_length": 9})})
    before, after = ({run.title: run.name for run in of.runs()} for of in (study, changed))
    new = {title.split(",")[0] for title in before if before[title] != after[title]}
    assert new == {"orgCP", "CP then SFT"}


def test_another_evaluation_trains_nothing_again(study: Study) -> None:
    changed = replace(study, languages={"fi": Language(evaluate={"batch_size": 2})})
    before, after = ({run.title: run for run in of.runs()} for of in (study, changed))
    one, other = before["InsCP, fi, 100 tokens, seed 0"], after["InsCP, fi, 100 tokens, seed 0"]
    assert one.name == other.name
    assert one.measure != other.measure


@pytest.mark.parametrize(("arms", "complaint"), [
    ({}, "arms: there is none"),
    ({"a": Arm(fit={}, after="b")}, "no arm b"),
    ({"a": Arm(fit={}, after="b"), "b": Arm(fit={}, after="a")}, "follows itself"),
    ({"a": Arm(fit={}, merge={})}, "trains and merges"),
    ({"a": Arm(), "b": Arm(after="a")}, "nothing happens after a"),
])  # fmt: skip
def test_arms_that_cannot_be_are_told(study: Study, arms: dict[str, Arm], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        replace(study, arms=arms).check()


def test_a_study_is_read_from_its_file_and_a_wrong_key_is_told(tmp_path: Path) -> None:
    text = "question: q\nfit: [a.yaml]\narms: {InsCP: {fit: {data.tagger: PlainTagger}}}\nlanguages: {fi: {}}\n"
    (tmp_path / "experiment.yaml").write_text(text)
    assert read_study(tmp_path).arms["InsCP"].fit == {"data.tagger": "PlainTagger"}
    (tmp_path / "experiment.yaml").write_text(text + "seed: [1]\n")
    with pytest.raises(UserError, match="Did you mean seeds"):
        read_study(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_study(tmp_path / "nothing")
