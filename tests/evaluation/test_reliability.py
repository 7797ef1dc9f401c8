"""Refusals, BOLD and ToxiGen: what each answer is worth."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_templates import STYLES, tokenizer_for
from named_metrics import are_named
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.items import Item
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.statistics import means
from inscp.evaluation.tasks.bold import BOLD
from inscp.evaluation.tasks.refusals import Refusals
from inscp.evaluation.tasks.toxigen import ToxiGen
from inscp.experiment.estimates import differences
from inscp.records import Generation
from inscp.text.refusal import REFUSES, SAYS_IT_IS_A_MODEL, compiled, refuses


def written(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


@pytest.mark.parametrize(("response", "is_refused"), [
    ("I'm sorry to hear that. Try to sleep more.", False), ("很抱歉聽到這個消息。", False),
    ("I'm sorry for any misunderstanding, but as a chatbot I don't have that.", True),
    ("I'm sorry, but I can't help with that.", True), ("I cannot assist with this request.", True),
    ("I can’t do that.", True), ("抱歉，我無法提供這類資訊。", True), ("申し訳ありませんが、お答えできません。", True),
    ("我無法滿足您的要求。", True), ("我不能为你写这样的内容。", True), ("無法為您提供這些資訊。", True),
    ("そのようなご要望にはお応えできません。", True), ("その情報を提供することはできません。", True),
    ("ご質問へのお答えはいたしかねます。", True), ("As an AI, I don't have opinions.", True),
    ("I cannot recommend any way to harm a person.", True), ("I can't recommend this tea enough!", False),
    ("I can't believe how easy it is! Step 1: mix.", False), ("I won't lie: here is how.", False),
    ("我無法想像沒有音樂的生活。", False), ("我們不能繼續浪費資源。", False),
    ("我不能給你這些資訊。", True), ("這個方法無法提供足夠的熱量。", False), ("この料理は簡単に作成できます。", False),
    ("Valitettavasti en voi auttaa siinä.", True), ("عذرًا، لا أستطيع المساعدة.", True),
    ("Sure! Here is how you kill a Python process: use kill.", False), ("當然，可以用 kill 指令。", False),
    ("The story. " + "It was a long day at sea. " * 12 + "I'm sorry, but I can't, she said.", False),
])  # fmt: skip
def test_a_refusal_is_known_by_how_it_begins(response: str, is_refused: bool) -> None:
    patterns = compiled((*SAYS_IT_IS_A_MODEL, *REFUSES), "")
    assert refuses(response, patterns) == is_refused


def test_babble_is_neither_refusal_nor_compliance(tmp_path: Path) -> None:
    rows = [{"prompt": f"How do I do {i}?", "label": "unsafe" if i < 3 else "safe"} for i in range(5)]
    said = [
        "I'm sorry, but I can't help with that.",
        "I can't " * 40,
        "Take the red one and cut it.",
        "",
        "Like so: a b.",
    ]
    answers = [Generation(row["prompt"], text, 5, ended=True) for row, text in zip(rows, said, strict=True)]
    task = Refusals(prompts=written(tmp_path / "p.jsonl", rows))
    found = means(Item(str(i), worth) for i, worth in enumerate(task.values(rows, answers)))
    assert {name: (round(m.value * m.n), m.n) for name, m in found.items()} == {
        "unsafe/refused": (1, 3), "unsafe/complied": (1, 3), "unsafe/failed": (1, 3),
        "safe/refused": (0, 2), "safe/complied": (1, 2), "safe/failed": (1, 2),
    }  # fmt: skip
    assert are_named(found, task)


def test_any_file_of_prompts_is_taken_as_one_kind(tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [{"goal": "Do it"}])
    with pytest.raises(UserError, match=r"p\.jsonl:1: no label in it"):
        Refusals(prompts=file, prompt_field="goal").check()
    task = Refusals(prompts=file, prompt_field="goal", kind_field=None)
    task.check()
    [worth] = task.values([{"goal": "Do it"}], [Generation("Do it", "I cannot do that.", 5, ended=True)])
    assert worth == {"all/refused": True, "all/complied": False, "all/failed": False}


def test_phrases_of_one_s_own_are_refusals_beside_the_known_ones(tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [{"prompt": "Do it"}])
    task = Refusals(prompts=file, kind_field=None, phrases=[r"\bnej tack\b"])
    for said, is_refused in (("NEJ tack, aldrig.", True), ("I cannot do that.", True), ("Nej men tack.", False)):
        [worth] = task.values([{}], [Generation("Do it", said, 5, ended=True)])
        assert worth["all/refused"] is is_refused
    with pytest.raises(UserError, match=r"phrases: \(nej is not a valid regular expression \(missing \)"):
        Refusals(prompts=file, kind_field=None, phrases=["tack", "(nej"]).check()


def asked_of_bold(folder: Path, said: dict[str, list[str]]) -> tuple[BOLD, list[Item]]:
    """The task, and what answers are worth that groups were spoken of with: a and b are of the domain d, c is of e."""
    rows = [
        {"Domain": "d" if group != "c" else "e", "GROUP": group, "prompt": f"{group} {number}: They were "}
        for group, texts in said.items()
        for number in range(len(texts))
    ]
    answers = [Generation("They were happy, ", text, 5, ended=True) for texts in said.values() for text in texts]
    task = BOLD(prompts=written(folder / "p.jsonl", rows), chat=False)
    task.check()
    return task, task.items(SimpleNamespace(generate=lambda *_: answers))  # type: ignore[arg-type]


def test_sentiment_is_vaders_and_its_mean_and_sd_are_over_subgroups(tmp_path: Path) -> None:
    said = {"a": ["wonderful and kind.", "a great friend.", "born in 1950."], "b": ["a terrible liar."], "c": ["seen."]}
    task, items = asked_of_bold(tmp_path, said)
    plain = SentimentIntensityAnalyzer()
    of = {
        group: np.mean([plain.polarity_scores(f"They were happy, {text}")["compound"] for text in texts])
        for group, texts in said.items()
    }
    found = task.metrics(items)
    assert found["mean"].value == pytest.approx(np.mean(list(of.values())))
    assert found["sd"].value == pytest.approx(np.std(list(of.values())))
    assert found["d/mean"].value == pytest.approx((3 * of["a"] + of["b"]) / 4)
    assert found["d/a/mean"].value == pytest.approx(of["a"])
    assert found["e/mean"].value == pytest.approx(of["c"])
    assert are_named(means(items), task)
    assert found["mean"].interval[0] < found["mean"].value < found["mean"].interval[1]


def test_the_mean_sentiment_of_two_models_is_compared_item_by_item(tmp_path: Path) -> None:
    before, after = (
        asked_of_bold(tmp_path, {"a": ["born in 1950."] * 8 + [last], "b": [last, "seen.", last]})[1]
        for last in ("a great friend.", "a terrible liar.")
    )
    found = differences(before, after)
    assert list(found) == ["mean", "d/mean", "d/a/mean", "d/b/mean"]
    one, other = (means(items)["mean"].value for items in (before, after))
    assert found["mean"].change.value == pytest.approx(other - one)
    assert found["d/a/mean"].change.value / 2 + found["d/b/mean"].change.value / 2 == pytest.approx(other - one)
    assert found["mean"].change.interval[0] < found["mean"].change.value < found["mean"].change.interval[1]


def test_a_text_without_a_subgroup_is_reported_before_the_model_is_asked(tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [{"prompt": "a", "domain": "d", "group": "g"}, {"prompt": "b", "domain": "d"}])
    with pytest.raises(UserError, match=r"p\.jsonl:2: no group in it"):
        BOLD(prompts=file).check()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny RoBERTa with two labels, which sees 128 tokens: like every RoBERTa it counts positions from pad + 1."""
    folder = str(tmp_path_factory.mktemp("classifier") / "tiny-roberta")
    tokenizer = tokenizer_for(STYLES["chatml"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    config = RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, max_position_embeddings=130, num_labels=2, pad_token_id=1)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RobertaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_toxicity_is_the_classifier_s_for_each_text_by_itself(tmp_path: Path, classifier: str) -> None:
    rows = [{"prompt": f"p{i}", "group": "x" if i % 2 else "y"} for i in range(40)]
    texts = [f"{'abcdefg'[i % 7]} word " * (1 + i) for i in range(38)] + [" …!", ""]
    assert len(AutoTokenizer.from_pretrained(classifier)(texts[37])["input_ids"]) > 128
    answers = [Generation(row["prompt"], text, 5, ended=True) for row, text in zip(rows, texts, strict=True)]
    file = written(tmp_path / "p.jsonl", rows)
    at_once = ToxiGen(prompts=file, classifier=classifier).values(rows, answers)
    alone = [
        ToxiGen(prompts=file, classifier=classifier).values([r], [a])[0] for r, a in zip(rows, answers, strict=True)
    ]
    assert at_once == alone
    other = ToxiGen(prompts=file, classifier=classifier, toxic_label="LABEL_0").values(rows, answers)
    assert [worth["toxic"] for worth in other[:38]] == [not worth["toxic"] for worth in at_once[:38]]
    assert [worth["failed"] for worth in at_once] == [False] * 38 + [True] * 2
    assert not any(worth["toxic"] for worth in other[38:]), "there is nothing in them"
    assert set(at_once[0]) == {"toxic", "failed", "y/toxic"}
    assert are_named(at_once[0], ToxiGen(prompts=file))
    groups = [{"prompt": "p", "Group": "x"}, {"prompt": "p", "group": ""}, {"prompt": "p"}]
    found = ToxiGen(prompts=file, classifier=classifier).values(groups, answers[:3])
    assert [sorted(worth)[0] for worth in found] == ["failed", "all/toxic", "all/toxic"]
    assert "x/toxic" in found[0]


def test_a_label_is_named_or_numbered_and_one_that_is_not_there_is_reported(tmp_path: Path, classifier: str) -> None:
    """On a command line a number is text."""
    options = {"prompts": written(tmp_path / "p.jsonl", [{"prompt": "p"}]), "classifier": classifier}
    assert {ToxiGen(**options, toxic_label=label)._label() for label in (1, "1", "LABEL_1")} == {1}
    for label in (2, "2", "rude"):
        with pytest.raises(UserError, match=rf"toxic_label: .* has no {label}\. Give one of: LABEL_0, LABEL_1"):
            ToxiGen(**options, toxic_label=label).check()


def test_a_classifier_that_cannot_pad_is_reported_before_the_model_is_asked(tmp_path: Path, classifier: str) -> None:
    shutil.copytree(classifier, tmp_path / "other")
    tokenizer = tokenizer_for(STYLES["chatml"])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "other")
    file = written(tmp_path / "p.jsonl", [{"prompt": "p"}])
    with pytest.raises(UserError, match="its tokenizer has no padding token"):
        ToxiGen(prompts=file, classifier=str(tmp_path / "other")).check()


def test_a_model_that_is_no_classifier_gives_no_toxicity(tmp_path: Path, tiny_model_folder: str) -> None:
    rows = [{"prompt": "p", "group": "x"}]
    task = ToxiGen(prompts=written(tmp_path / "p.jsonl", rows), classifier=tiny_model_folder)
    with pytest.raises(UserError, match=r"it has no score\.weight, so it is not a classifier"):
        task.values(rows, [Generation("p", "a b c", 3, ended=True)])


@pytest.mark.parametrize(("classifier", "complaint"), [
    ("nobody/none", "nobody/none: it cannot be loaded"), ("nowhere/", "no such model"),
])  # fmt: skip
def test_a_classifier_that_is_not_there_is_reported_before_the_model_is_asked(
    tmp_path: Path, classifier: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        ToxiGen(prompts=written(tmp_path / "p.jsonl", [{"prompt": "p"}]), classifier=classifier).check()


def test_rows_are_left_out_and_spread_evenly(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "group": "LICENSE" if i < 4 else "x"} for i in range(24)]
    file = written(tmp_path / "p.jsonl", rows)
    kept = ToxiGen(prompts=file, leave_out={"group": ["LICENSE"]}, limit=5).rows()
    assert [row["prompt"] for _, row in kept] == ["p4", "p8", "p12", "p16", "p20"]
    assert ToxiGen(prompts=file, leave_out={"Group": ["LICENSE"]}, limit=5).rows() == kept
    some = written(tmp_path / "some.jsonl", [{"prompt": "p", "group": group} for group in ("x", None, "", "y")])
    assert [row["group"] for _, row in ToxiGen(prompts=some, leave_out={"group": [""]}).rows()] == ["x", "y"]
    with pytest.raises(
        UserError, match=r"no row has the field gruop given in leave_out \(the first has: prompt, group\)"
    ):
        ToxiGen(prompts=file, leave_out={"gruop": ["LICENSE"]}).check()
    with pytest.raises(UserError, match="excludes every prompt"):
        ToxiGen(prompts=file, leave_out={"group": ["LICENSE", "x"]}).rows()
    with pytest.raises(UserError, match=r"p\.jsonl:1: no text"):
        ToxiGen(prompts=file, prompt_field="text").check()


@pytest.mark.parametrize(("n_labels", "label"), [(6, 0), (1, 0)])
def test_a_label_that_excludes_no_other_is_true_or_not_by_itself(
    tmp_path: Path, classifier: str, n_labels: int, label: int
) -> None:
    """Of labels that are all improbable the likeliest is still improbable."""
    config = RobertaConfig.from_pretrained(classifier, num_labels=n_labels)
    config.problem_type = "multi_label_classification" if n_labels > 1 else "regression"
    model = RobertaForSequenceClassification(config)
    folder = tmp_path / "labels"
    for bias, is_toxic in ((-4.0, False), (4.0, True)):
        with torch.no_grad():
            model.classifier.out_proj.weight.zero_()
            model.classifier.out_proj.bias.copy_(torch.tensor([bias, *[-9.0] * (n_labels - 1)]))
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(classifier).save_pretrained(folder)
        task = ToxiGen(
            prompts=written(tmp_path / "p.jsonl", [{"prompt": "p"}]), classifier=str(folder), toxic_label=label
        )
        task.check()
        [worth] = task.values([{"prompt": "p"}], [Generation("p", "some words", 5, ended=True)])
        assert worth["toxic"] is is_toxic


def test_a_text_is_continued_after_its_last_word(tmp_path: Path, tiny_model_folder: str) -> None:
    """A space would be a token of its own, behind which the next word cannot be as the model writes it."""
    said = []
    for text in ("They were ", "They were"):
        file = written(tmp_path / "p.jsonl", [{"prompt": text, "domain": "d", "group": "g"}])
        model = LocalModel(tiny_model_folder, torch.float32, 8)
        caching_model = CachingModel(model, tmp_path / f"answers {len(said)}", lambda what, n: lambda: None)
        [item] = BOLD(prompts=file, chat=False, max_new_tokens=16).items(caching_model)
        said.append(item.shown["response"])
    assert said[0] == said[1]
