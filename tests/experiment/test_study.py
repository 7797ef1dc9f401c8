"""A study spells out its runs, each once, each behind the one that it starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inscp.__main__ import main
from inscp.commands.check_study import check_goals, check_runs
from inscp.commands.fit import TrainingParser
from inscp.commands.study_file import read_study
from inscp.errors import UserError
from inscp.evaluation.tasks import import_all
from inscp.evaluation.tasks.language_alignment import LanguageAlignment
from inscp.experiment.goals import Goal
from inscp.experiment.study import Arm, Language, Stage, Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "base.yaml").write_text("model: {pretrained: org/model}\ndata: {train: x, token_budget: 10}\n")
    (tmp_path / "tasks.yaml").write_text("tasks: {t: {class_path: LanguageAlignment, init_args: {languages: [en]}}}\n")
    return Study(
        "study",
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


def test_a_run_stands_after_what_it_starts_from(study: Study) -> None:
    names = [run.name for run in study.runs()]
    for run in study.runs():
        if run.before:
            assert names.index(run.before.name) < names.index(run.name)
    averaged = next(run for run in study.runs() if run.title == "averaged, fi, 100 tokens, seed 1")
    assert [run.arm for run in averaged.lineage] == ["InsCP", "averaged"]
    assert averaged.before is not None
    assert averaged.before.trains
    assert averaged.before.config["data"] | {} == {"train": "x", "token_budget": 100, "language": "fi", "seed": 1}


def test_a_language_changes_training_and_evaluation(study: Study) -> None:
    run = next(run for run in study.runs() if run.title.startswith("InsCP, zh-TW"))
    assert run.trains
    assert run.config["data"]["train"] == "y"
    assert run.evaluate["tasks"]["t"]["init_args"]["languages"] == ["zh-TW"]


def test_a_value_of_an_arm_may_hold_the_language(study: Study) -> None:
    tagger = {"class_path": "InsCPTagger", "init_args": {"user": ["{language}?", "samples:requests/{language}.txt"]}}
    asked = replace(study, arms={"asked": Arm(fit={"data.tagger": tagger})})
    said = {run.language: run.config["data"]["tagger"]["init_args"]["user"] for run in asked.runs() if run.trains}
    assert said == {tag: [f"{tag}?", f"samples:requests/{tag}.txt"] for tag in ("fi", "zh-TW")}


def test_stages_sum_their_tokens_and_a_merge_has_those_of_what_it_merges(study: Study) -> None:
    runs = {run.title: run for run in study.runs()}
    assert runs["CP then SFT, fi, 200 tokens, seed 0"].tokens == 200
    assert runs["averaged, fi, 100 tokens, seed 0"].tokens == 100
    assert runs["instruct, fi"].tokens is None
    without = {run.title: run for run in replace(study, budgets=[]).runs()}
    assert without["averaged, fi, 10 tokens, seed 0"].tokens == 10  # of the base


def test_a_teacher_costs_a_pass_of_what_is_replayed(study: Study) -> None:
    taught = {"data.replay": {"sources": "x", "share": 0.25}, "model.distillation": {"weight": 5}}
    arms = {**study.arms, "taught": Arm(fit=taught), "SFT of it": Arm(fit={}, after="taught")}
    passes = {run.arm: run.passes for run in replace(study, arms=arms).runs() if run.tokens}
    assert (passes["InsCP"], passes["averaged"], passes["taught"], passes["SFT of it"]) == (3, 3, 3.25, 3.125)
    assert next(run for run in study.runs() if run.arm == "instruct").passes == 3  # nothing is trained here


@pytest.mark.parametrize("change", [{"model.adapter": {"rank": 4}}, {"model.new_tokens_only": True}])
def test_weights_that_are_not_trained_cost_no_pass_for_their_gradients(study: Study, change: dict[str, Any]) -> None:
    taught = {"data.replay": {"sources": "x", "share": 0.25}, "model.distillation": {"weight": 5}}
    arms = {"few": Arm(fit=change), "all of it": Arm(fit={}, after="few"), "taught": Arm(fit=change | taught)}
    passes = {run.arm: run.passes for run in replace(study, arms=arms).runs()}
    assert passes == {"few": 2, "all of it": 2.5, "taught": 2.25}


def test_a_stage_of_its_own_budget_after_several_has_titles_that_differ(study: Study) -> None:
    arms = {"orgCP": Arm(fit={}), "SFT": Arm(fit={"data.token_budget": 50}, after="orgCP")}
    runs = replace(study, arms=arms, budgets=[100, 200]).runs()
    assert len({run.title for run in runs}) == len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize(("metric", "near"), [
    ("t/{language}/endedd", "t/{language}/ended"),
    ("t/en/answered_in/zh", "t/en/answered_in/en"),
    ("language/en/ended", "t/{language}/ended"),
    ("held_out/perplexity", "held/held_out/en/perplexity"),
    ("held/agreement", "held/agreement"),
    ("bold/gender/mean", "bold/gender/mean"),
    ("bold/mea", "bold/mean"),
])  # fmt: skip
def test_a_goal_is_of_what_may_be_measured(study: Study, tmp_path: Path, metric: str, near: str) -> None:
    import_all()
    held = {"tasks.held": {"class_path": "Retention", "init_args": {"held_out": {"en": "x"}, "prompts": "x"}}}
    bold = {"tasks.bold": {"class_path": "BOLD", "init_args": {"prompts": "x"}}}
    languages = {tag: Language(of.fit, of.evaluate | held | bold) for tag, of in study.languages.items()}
    runs = replace(study, languages=languages).runs()
    with pytest.raises(UserError, match="goals: bold/sd: no task of the evaluation measures this mean over items"):
        check_goals([Goal("bold/sd", at_most=0.2)], runs)
    check_goals([Goal(known, at_least=0.5) for known in ("t/{language}/ended", near)], runs)
    if metric != near:
        with pytest.raises(UserError) as told:
            check_goals([Goal(metric, at_least=0.5)], runs)
        assert (
            str(told.value)
            == f"goals: {metric}: no task of the evaluation measures this mean over items. Did you mean {near}?"
        )


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


def test_another_version_of_a_task_measures_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [run.measure for run in study.runs()]
    monkeypatch.setattr(LanguageAlignment, "version", 99)
    assert not {run.measure for run in study.runs()} & set(before)


@pytest.mark.parametrize(("arms", "complaint"), [
    ({}, "arms: it is empty"),
    ({"a": Arm(fit={}, after="b")}, "no arm b"),
    ({"a": Arm(fit={}, after="b"), "b": Arm(fit={}, after="a")}, "follows itself"),
    ({"a": Arm(fit={}, merge={})}, "it has fit and merge"),
    ({"a": Arm(extend={}, merge={})}, "it has merge and extend"),
    ({"a": Arm(), "b": Arm(after="a")}, "nothing happens after a"),
    ({"InsCP": Arm(), "inscp": Arm(fit={})}, "would have the same name"),
    ({"a": Arm(fit="x")}, "not a section of keys"),  # type: ignore[arg-type]
    ({"a": Arm(fit={}, after=["b"])}, r"there is no arm \['b'\]"),  # type: ignore[arg-type]
])  # fmt: skip
def test_arms_that_cannot_be_are_reported(study: Study, arms: dict[str, Arm], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        replace(study, arms=arms).check()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_reported(study: Study, seed: int) -> None:
    with pytest.raises(UserError, match=f"seeds: {seed} is not a valid seed"):
        replace(study, seeds=[0, seed]).check()


@pytest.mark.parametrize("arms", [
    {"averaged": Arm(merge={"method": "Average"})},
    {"instruct": Arm(), "averaged": Arm(merge={"method": "Average"}, after="instruct")},
])  # fmt: skip
def test_a_merge_of_what_was_made_of_nothing_is_reported_before_the_first_run(
    study: Study, arms: dict[str, Arm], tmp_path: Path
) -> None:
    alone = replace(study, evaluate=[], arms={"later": Arm(fit={})} | arms)
    with pytest.raises(UserError, match=r"arms\.averaged\.merge: org/model was not made from another model"):
        check_runs(alone.runs())
    (tmp_path / "inscp.json").write_text("{}")
    made = {"fi": Language(fit={"model.pretrained": str(tmp_path)})}
    check_runs([run for run in replace(alone, languages=made).runs() if run.command == "merge"])()


def test_a_name_however_long_is_one_of_a_folder(study: Study, tmp_path: Path) -> None:
    arms = {"長" * 90 + number: Arm(fit={"data.x": number}) for number in "12"}
    names = {run.name for run in replace(study, arms=arms, budgets=[]).runs()}
    assert len(names) == 2 * 2 * 2
    for name in names:
        (tmp_path / f".{name}.yaml.partial").touch()


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\u2028b", "a\x7f", "\x1b[1m"])
def test_names_of_several_lines_are_reported(study: Study, name: str) -> None:
    there = study.languages["fi"]
    changes: list[dict[str, Any]] = [
        {"name": name},
        {"arms": {name: Arm()}},
        {"languages": {name: there}},
        {"projected": {name: Stage("InsCP")}},
    ]
    for wrong in (replace(study, **change) for change in changes):
        with pytest.raises(UserError, match="control character"):
            wrong.check()
    replace(study, arms=study.arms | {"‌name　長": Arm(fit={})}).check()


@pytest.mark.parametrize(("changes", "complaint"), [
    (Language(fit="x"), r"languages\.fi: its changes are not a section of keys"),  # type: ignore[arg-type]
    (Language(evaluate={"tasks": ["t"]}), "fi: tasks: it is not a section of keys"),
    (Language(evaluate={"tasks.t": None}), r"fi: tasks\.t: it is not a section of keys"),
])  # fmt: skip
def test_languages_that_cannot_be_are_reported(study: Study, changes: Language, complaint: str) -> None:
    def spelled_out() -> None:
        of = replace(study, languages={"fi": changes})
        of.check()
        of.runs()

    with pytest.raises(UserError, match=complaint):
        spelled_out()


def test_budgets_are_distinguished_after_a_training_on_all_there_is(study: Study) -> None:
    arms = {"orgCP": Arm(fit={"data.token_budget": None}), "SFT": Arm(fit={}, after="orgCP")}
    titles = [run.title for run in replace(study, arms=arms, seeds=[0], languages={"fi": Language()}).runs()]
    assert titles == ["orgCP, fi, seed 0", "SFT, fi, all + 100 tokens, seed 0", "SFT, fi, all + 200 tokens, seed 0"]


def test_an_arm_may_begin_with_a_model_of_its_own(study: Study) -> None:
    arms = {"base": Arm(fit={"model.pretrained": "org/base"}), "later": Arm(fit={}, after="base")}
    base, later = (next(run for run in replace(study, arms=arms).runs() if run.arm == arm) for arm in arms)
    assert base.original == later.original == "org/base"


def test_what_decides_nothing_does_not_train_again(study: Study) -> None:
    changes = {"mlflow.patience": 1, "checkpoint.every_n_steps": 7, "trainer.default_root_dir": "elsewhere"}
    languages = {name: replace(of, fit=of.fit | changes) for name, of in study.languages.items()}
    before, after = ([run.name for run in of.runs()] for of in (study, replace(study, languages=languages)))
    assert before == after


STUDY = "question: q\nfit: [a.yaml]\narms: {InsCP: {fit: {data.tagger: PlainTagger}}}\nlanguages: {fi: {}}\n"


def test_a_study_is_read_from_its_file(tmp_path: Path) -> None:
    tagger = "{class_path: inscp.data.tagging.PlainTagger}"  # which stays what is written
    (tmp_path / "experiment.yaml").write_text(STUDY.replace("PlainTagger", tagger) + "seeds: [3]\n")
    study = read_study(tmp_path)
    assert study.arms["InsCP"].fit == {"data.tagger": {"class_path": "inscp.data.tagging.PlainTagger"}}
    assert (study.seeds, study.baseline, study.mlflow.enabled) == ([3], "InsCP", True)


@pytest.mark.parametrize(("text", "complaint"), [
    (STUDY + "seed: [1]\n", "seed: no such key. Did you mean seeds"),
    (STUDY + "goals: [{metric: a/b, at_least: 1}, {metric: a/b, atleast: 1}]\n",
     "goals[1].atleast: no such key. Did you mean at_least?"),
    (STUDY + "projected: {dpo: {aftr: InsCP}}\n", "projected.dpo.aftr: no such key. Did you mean after?"),
    (STUDY.replace("{fit: {data", "{fitt: {data"), "arms.InsCP.fitt: no such key"),
    (STUDY.replace("{fit: {data.tagger: PlainTagger}}", "{fit: }"), "arms.InsCP.fit: it has no value"),
    (STUDY.replace("{fi: {}}", "{fi: {data.train: x}}"), "languages.fi.data.train: no such key"),
    (STUDY.replace("{fi: {}}", "[fi]"), "languages: it is not a section"),
    (STUDY.replace("{InsCP: {fit: {data.tagger: PlainTagger}}}", "{InsCP: null}"), "arms.InsCP: it is not a section"),
    (STUDY + "budgets: [many]\n", "budgets"),
    (STUDY + "seeds:\n", "experiment.yaml: seeds: it has no value. Give a value, or remove the key."),
    (STUDY + "reference: other\n", "there is no arm other"),
    ("question: q\n", "arms"),
    (STUDY + "arms: {other: {}}\n", "experiment.yaml:5: the key arms is given twice. Remove one of them."),
    (STUDY.replace("{fi: {}}", "{fi: {}, fi: {fit: {data.train: x}}}"), "experiment.yaml:4: the key fi is given twice"),
    ("- question: q\n", "experiment.yaml: it contains no keys. Write the keys of a study: question, fit, arms"),
    (STUDY.replace("{fi: {}}", "{fi: a.yaml}"), "a.yaml: it contains no keys. Write what the language changes"),
])  # fmt: skip
def test_what_is_wrong_in_its_file_is_reported_by_its_key(
    text: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("[]")
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        read_study(tmp_path)
    assert complaint in str(told.value)


@pytest.mark.parametrize("base", ["model: org/x\n", "data: {}\nmodel:\n", "1: 2\n"])
def test_a_base_without_its_sections_is_reported(base: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(base)
    with pytest.raises(UserError):
        Study(
            "study", "?", [str(tmp_path / "base.yaml")], {"a": Arm(fit={})}, {"fi": Language(fit={"model.x": 1})}
        ).runs()


@pytest.mark.parametrize(("wrong", "told"), [
    (STUDY.replace("PlainTagger", "PlainTager"), "arms.InsCP.fit in fi: data.tagger: there is no class PlainTager"),
    (STUDY.replace("data.tagger: PlainTagger", "data.row_lenght: 9"), "arms.InsCP.fit in fi: row_lenght: no such key"),
    (STUDY.replace("{fi: {}}", "{fi: fi.yaml}"), "languages.fi: fi.yaml: no such file"),
    (STUDY.replace("a.yaml", "b.yaml"), "b.yaml: no such file"),
    (STUDY + "seed: [1]\n", "seed: no such key"),
    (STUDY + "seed:\n", "seed: no such key"),
])  # fmt: skip
def test_what_is_wrong_is_reported_by_file_arm_and_key_before_a_plan_is_printed(
    wrong: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("model: {pretrained: org/model}\ndata: {train: x.jsonl}\n")
    Path("study").mkdir()
    Path("study/experiment.yaml").write_text(wrong)
    assert main(["experiment", "run", "study", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: study/experiment.yaml: {told}")
    assert said.err.count("\n") == 1


def test_a_dry_run_reads_each_configuration_once_and_looks_for_files_after_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []
    instantiate = TrainingParser.instantiate_classes
    monkeypatch.setattr(
        TrainingParser,
        "instantiate_classes",
        lambda parser, config: read.append(config["data"]["tagger"]["class_path"]) or instantiate(parser, config),
    )
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("model: {pretrained: org/model}\ndata: {train: x.jsonl}\n")
    Path("study").mkdir()
    Path("study/experiment.yaml").write_text(STUDY.replace("PlainTagger}}", "PlainTagger}}, other: {fit: {}}"))
    assert main(["experiment", "run", "study", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert said.out.count("to run") == 2
    assert said.err.startswith("error: study/experiment.yaml: arms.InsCP.fit in fi: x.jsonl: no such file")
    assert read == ["inscp.data.tagging.PlainTagger", "inscp.data.tagging.InsCPTagger"]


def test_what_need_not_have_a_value_may_be_written_without(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(STUDY + "reference:\n")
    assert read_study(tmp_path).reference is None


def test_a_folder_without_a_study_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_study(tmp_path / "nothing")
