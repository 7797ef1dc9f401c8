"""MT-Bench: what a judge is shown, which of its replies count, and what they come to."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_replies import compared, graded
from named_metrics import are_named
from openai_server import CUT, HANGS, KEY, OpenAIServer, Reply, serving

from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.items import Item, items_folder, write_items
from inscp.evaluation.server import Server
from inscp.evaluation.tasks.mt_bench import MTBench
from inscp.records import Generation, Prompt
from inscp.text.language import primary

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["寫一首詩", "再短一點"]},
    {"question_id": 82, "category": "math", "turns": ["一加一？", "再加一？"]},
    {"question_id": 83, "category": "writing", "turns": ["寫一封信", "給誰？"]},
]
REFERENCES = [
    {"question_id": k, "choices": [{"index": 0, "turns": [f"right {k}.1", f"right {k}.2"]}]} for k in (81, 82, 83)
]


class Model:
    """A model under test that answers every turn with the number of turns and the last one."""

    spec = "model"
    made_by = {"model": "model"}  # noqa: RUF012
    tokenizer: Any = None

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[tuple[int, Generation]]:
        self.asked += prompts
        for place, prompt in enumerate(prompts):
            yield (
                place,
                Generation(prompt[-1].text, f"mine {len(prompt)} {prompt[-1].text}", max_new_tokens, ended=True),
            )

    def nlls(self, sequences: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., MTBench]:
    """The task on `QUESTIONS`, judged at an address."""
    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    write_rows(tmp_path / "references.jsonl", REFERENCES)

    def make(
        judge: OpenAIServer, model: str = "judge", budget_calls: int | None = None, timeout: float = 60, **options: Any
    ) -> MTBench:
        server = Server(judge.address, model, budget_calls=budget_calls, timeout=timeout)
        return MTBench(questions=str(tmp_path / "questions.jsonl"), language="zh-TW", judge=server, **options)

    return make


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def caching_model(folder: Path) -> CachingModel:
    return CachingModel(Model(), folder / "out", lambda *_: lambda: None)


def is_comparison(prompt: str) -> bool:
    return "<answer_of_A_1_" in prompt


def judging(grade: Reply = "", comparison: Callable[[str], str] = lambda _: "tie") -> Any:
    """A judge with one grade for everything, and a comparison that sees the prompt."""

    def answer(body: dict[str, Any]) -> Reply:
        prompt = body["messages"][-1]["content"]
        return compared(comparison(prompt)) if is_comparison(prompt) else grade or graded()

    return serving(answer)


def by_turn(first: str, second: str) -> Any:
    """A judge with a grade for each turn."""
    return serving(lambda body: second if "in turn 2 alone" in body["messages"][-1]["content"] else first)


def values(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [dict(item.values) for item in items]


def test_the_second_question_comes_after_the_first_answer(task: Callable[..., MTBench], tmp_path: Path) -> None:
    with judging() as judge:
        model = caching_model(tmp_path)
        items = task(judge, limit=1).items(model)
        first, second = model.backend.asked  # type: ignore[attr-defined]
    assert [(turn.role, turn.text) for turn in first] == [("user", "寫一首詩")]
    assert [(turn.role, turn.text) for turn in second] == [
        ("user", "寫一首詩"), ("assistant", "mine 1 寫一首詩"), ("user", "再短一點")]  # fmt: skip
    assert items[0].shown["answers"] == ["mine 1 寫一首詩", "mine 3 再短一點"]


def test_the_judge_sees_the_turn_that_it_grades_with_what_came_before_it_and_no_more(
    task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with judging() as judge:
        task(judge, limit=1).items(caching_model(tmp_path))
        first, second = sorted(judge.prompts(), key=len)
    assert "in turn 1 alone" in first
    assert "再短一點" not in first
    assert "in turn 2 alone" in second
    tags = re.findall(r"^<(\w+)_\w+>\n(.*)\n</\1_\w+>$", second, re.MULTILINE)
    assert tags == [("question_1", "寫一首詩"), ("answer_1", "mine 1 寫一首詩"),
                    ("question_2", "再短一點"), ("answer_2", "mine 3 再短一點")]  # fmt: skip
    assert "zh-TW" in second


def test_scores_are_by_turn_by_category_and_the_mean_of_both_turns(
    task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with by_turn(graded(9), graded(4)) as judge:
        bench = task(judge)
        items = bench.items(caching_model(tmp_path))
    common = {"unparsed": False, "score/turn_1": 9.0, "score/turn_2": 4.0, "score": 6.5, "in_language": True,
              "score_in_language": 6.5}  # fmt: skip
    assert values(items) == [common | {f"score/{q['category']}": 6.5} for q in QUESTIONS]
    assert are_named(values(items)[0], bench)
    assert [item.id for item in items] == ["81", "82", "83"]
    metrics = bench.metrics(items)
    assert (metrics["score"].value, metrics["score/writing"].n, metrics["in_language"].n) == (6.5, 2, 3)
    assert [verdict["reason"] for verdict in items[0].shown["verdicts"]] == ["It is so."] * 2


@pytest.mark.parametrize(("first", "second", "is_in"), [
    ("zh-TW", "zh-TW", True), ("zh", "zh_Hant_TW", True), ("ZH", "zh-CN", True),
    ("zh-TW", "en", False), ("en", "zh-TW", False), ("und", "und", False),
])  # fmt: skip
def test_a_question_is_answered_in_its_language_if_both_turns_are(
    first: str, second: str, is_in: bool, task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with by_turn(graded(5, first), graded(5, second)) as judge:
        [item] = task(judge, limit=1).items(caching_model(tmp_path))
    assert (item.values["in_language"], item.values["score"]) == (is_in, 5.0)
    in_theirs = [primary(tag) == "zh" for tag in (first, second)]
    assert item.values["score_in_language"] == sum(5 if is_one else 1 for is_one in in_theirs) / 2


@pytest.mark.parametrize(("options", "shown"), [
    ({}, {}), ({"references": "references.jsonl"}, {"82.1": 2, "82.2": 1}),
    ({"references": "references.jsonl", "reference_categories": ["writing"]},
     {"81.1": 2, "81.2": 1, "83.1": 2, "83.2": 1}),
])  # fmt: skip
def test_the_judge_sees_the_right_answers_up_to_the_turn_in_the_categories_that_have_them(
    options: dict[str, Any], shown: dict[str, int], task: Callable[..., MTBench], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with judging() as judge:
        task(judge, **options).items(caching_model(tmp_path))
    assert Counter(re.findall(r"^<reference_\d_\w+>\nright (\S+)$", "\n".join(judge.prompts()), re.MULTILINE)) == shown


def test_a_judge_that_cannot_be_read_is_asked_again_in_other_words(
    task: Callable[..., MTBench], tmp_path: Path
) -> None:
    left = ["nonsense", graded(11)]
    with serving(lambda _: left.pop(0) if left else graded(3)) as judge:
        [item] = task(judge, limit=1).items(caching_model(tmp_path))
        assert (item.values["score"], item.values["unparsed"]) == (3.0, False)
        assert len(judge.asked) == len(set(judge.prompts())) == 4


def test_a_judge_that_fails_in_every_way_still_gives_all_its_grades(
    task: Callable[..., MTBench], tmp_path: Path
) -> None:
    troubles: list[Reply] = [429, 500, CUT, HANGS, b"", b"{}", "nonsense"]
    left = list(troubles)
    with serving(lambda _: left.pop(0) if left else graded(3)) as judge:
        items = task(judge, timeout=0.5).items(caching_model(tmp_path))
        assert [(item.values["score"], item.values["unparsed"]) for item in items] == [(3.0, False)] * 3
        assert len(judge.asked) == 6 + len(troubles)


def test_a_judge_that_can_never_be_read_is_counted_and_not_guessed(
    task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with by_turn(graded(8), "I give it a 7.") as judge:
        bench = task(judge, limit=1)
        items = bench.items(caching_model(tmp_path))
        assert values(items) == [{"unparsed": True, "score/turn_1": 8.0}]
        assert len([prompt for prompt in judge.prompts() if "in turn 2 alone" in prompt]) == 3
    assert items[0].shown["verdicts"][1] == {"unparsed": "I give it a 7."}
    assert bench.metrics(items)["unparsed"].value == 1.0


def test_what_was_judged_is_not_asked_again(task: Callable[..., MTBench], tmp_path: Path) -> None:
    with judging() as judge:
        with pytest.raises(UserError, match="budget"):
            task(judge, budget_calls=4).items(caching_model(tmp_path))
        assert len(judge.asked) == 4
        items = task(judge).items(caching_model(tmp_path))
        assert len(judge.asked) == len(set(judge.prompts())) == 6
        assert task(judge).items(caching_model(tmp_path)) == items
        assert len(judge.asked) == 6


def test_judgements_of_two_judges_lie_side_by_side(task: Callable[..., MTBench], tmp_path: Path) -> None:
    with judging() as judge:
        for model in ("one", "other", "one"):
            task(judge, model=model).items(caching_model(tmp_path))
        assert len(judge.asked) == 12
        heads = [path.read_text().splitlines()[0] for path in (tmp_path / "out").glob("judgements-*.jsonl")]
    assert sorted(json.loads(head)["model"] for head in heads) == ["one", "other"]


def test_what_judging_will_take_is_reported_before_it_begins(
    task: Callable[..., MTBench], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    with serving(lambda _: told.append(capsys.readouterr().err) or graded()) as judge:
        task(judge, model="gpt").items(caching_model(tmp_path))
        assert f"judging: 6 calls of gpt at {judge.address}, about " in "".join(told)
    assert "judged: 6 calls, 30 tokens, 0.00 in total" in capsys.readouterr().err


def test_a_judge_that_is_not_there_is_found_before_the_model_is_asked(task: Callable[..., MTBench]) -> None:
    with judging() as judge:
        task(judge).check()
        judge.address = "http://127.0.0.1:9/v1"
        with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1: no server responds"):
            task(judge).check()


def test_the_key_of_the_judge_is_in_no_file_and_no_output(
    task: Callable[..., MTBench], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with judging() as judge:
        bench = task(judge)
        write_items(tmp_path / "out", "mt_bench", bench.items(caching_model(tmp_path)))
        assert judge.keys == {f"Bearer {KEY}"}
    files = [path.read_text("utf-8") for path in (tmp_path / "out").iterdir()]
    assert len(files) == 3
    assert KEY not in "".join([repr(bench), *files, *capfd.readouterr()])


def opposed(folder: Path, questions: Sequence[Any] = QUESTIONS) -> str:
    """The results file of an opponent that answered `theirs` to everything."""
    items = [Item(str(q["question_id"]), {}, shown={"questions": q["turns"], "answers": ["theirs", "theirs"]})
             for q in questions]  # fmt: skip
    write_items(items_folder(folder / "other.json"), "theirs", items)
    return str(folder / "other.json")


def mine_is(prompt: str) -> str:
    """The name that the answers of the model under test have."""
    return "A" if re.search(r"<answer_of_A_1_\w+>\nmine", prompt) else "B"


@pytest.mark.parametrize(("comparison", "outcome", "is_consistent"), [
    (mine_is, "win", True), (lambda prompt: "B" if mine_is(prompt) == "A" else "A", "loss", True),
    (lambda _: "tie", "tie", True), (lambda _: "A", "tie", False), (lambda _: "B", "tie", False),
    (lambda prompt: "A" if mine_is(prompt) == "A" else "tie", "tie", False),
])  # fmt: skip
def test_a_win_holds_whichever_of_the_two_stands_first(
    comparison: Callable[[str], str], outcome: str, is_consistent: bool, task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with judging(comparison=comparison) as judge:
        bench = task(judge, opponent=opposed(tmp_path), opponent_task="theirs")
        items = bench.items(caching_model(tmp_path))
        orders = [mine_is(prompt) for prompt in judge.prompts() if is_comparison(prompt)]
    assert sorted(orders) == ["A"] * 3 + ["B"] * 3
    assert are_named(values(items)[0], bench)
    for found in values(items):
        shares = {name: found[f"pairwise/{name}"] for name in ("win", "tie", "loss")}
        assert shares == {name: name == outcome for name in shares}
        assert found["pairwise/consistent"] == is_consistent


def test_a_comparison_that_cannot_be_read_is_no_outcome(task: Callable[..., MTBench], tmp_path: Path) -> None:
    with judging(comparison=lambda prompt: "A" if mine_is(prompt) == "A" else "mine") as judge:
        bench = task(judge, opponent=opposed(tmp_path), opponent_task="theirs", limit=1)
        [item] = bench.items(caching_model(tmp_path))
    assert item.values["unparsed"]
    assert item.values["score"] == 7.0
    assert not [name for name in item.values if name.startswith("pairwise")]


@pytest.mark.parametrize("questions", [QUESTIONS[:2], [{**q, "turns": ["other", "texts"]} for q in QUESTIONS]])
def test_an_opponent_that_was_not_asked_the_same_is_refused(
    questions: Sequence[Any], task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with judging() as judge, pytest.raises(UserError, match="the opponent did not answer question 8"):
        task(judge, opponent=opposed(tmp_path, questions), opponent_task="theirs").check()


@pytest.mark.parametrize(("rows", "complaint"), [
    ([{**QUESTIONS[0], "turns": ["one"]}], ":1: turns is not a list of 2 texts"),
    ([{**QUESTIONS[0], "turns": "text"}], ":1: turns is not"),
    ([QUESTIONS[0], {**QUESTIONS[1], "category": 3}], ":2: category is not text"),
    ([QUESTIONS[0], QUESTIONS[0]], ":2: there is another question 81"), ([{"turns": ["a", "b"]}], ":1: no question_id"),
])  # fmt: skip
def test_a_broken_file_of_questions_names_its_line(
    rows: Sequence[Any], complaint: str, task: Callable[..., MTBench], tmp_path: Path
) -> None:
    with judging() as judge:
        bench = task(judge)
        write_rows(tmp_path / "questions.jsonl", rows)
        with pytest.raises(UserError, match=complaint):
            bench.check()


@pytest.mark.parametrize("choices", [[], [{}], "text", [{"turns": ["one"]}]])
def test_a_broken_file_of_references_names_its_line(choices: Any, task: Callable[..., MTBench], tmp_path: Path) -> None:
    write_rows(tmp_path / "references.jsonl", [{"question_id": 81, "choices": choices}])
    with judging() as judge, pytest.raises(UserError, match=r"references\.jsonl:1"):
        task(judge, references=str(tmp_path / "references.jsonl")).check()


def test_a_question_whose_right_answers_are_missing_is_reported(task: Callable[..., MTBench], tmp_path: Path) -> None:
    """Graded without them it would be another measure."""
    write_rows(tmp_path / "references.jsonl", [REFERENCES[0]])
    with judging() as judge:
        asked = task(judge, references=str(tmp_path / "references.jsonl"))
        with pytest.raises(
            UserError, match=r"questions\.jsonl:2: .*references\.jsonl has no reference answers to .* 82"
        ):
            asked.check()
        asked.reference_categories = ["coding"]
        asked.check()


def test_a_language_that_is_no_tag_is_reported(task: Callable[..., MTBench]) -> None:
    with judging() as judge:
        bench = task(judge)
        bench.language = "Chinese"
        with pytest.raises(UserError, match="language: Chinese is not a BCP 47 tag"):
            bench.check()
