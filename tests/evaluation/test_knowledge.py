"""A benchmark over our scoring gives what lm-evaluation-harness gives by itself with its own model class in fp32."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.definitions import task_manager
from inscp.evaluation.items import Item
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.prompts import evenly_spaced
from inscp.evaluation.statistics import means
from inscp.evaluation.tasks.knowledge import Knowledge, _Group, _in_groups
from inscp.experiment.estimates import differences
from inscp.records import IGNORED, Generation, Prompt, TokenSequence, Turn

ARC = [
    {"query": "Question: What falls from a cloud?", "choices": ["stones", "rain, mostly", "a house"], "gold": 1},
    {"query": "Question: Where does the river end?", "choices": ["in the sea", "on the hill", "here"], "gold": 0},
    {"query": "Question: Who sleeps in the mill?", "choices": ["the miller", "no one", "ten geese, a fox"], "gold": 2},
    {"query": "Question: 河水流過什麼？", "choices": ["古老的磨坊", "天空", "時間"], "gold": 0},
]  # fmt: skip
TRUTHFUL = [
    {
        "Question": "Does the moon hear what children say?",
        "Best Answer": "No, it has no ears",
        "Correct Answers": "No, it has no ears; The moon hears nothing",
        "Incorrect Answers": "Yes, at night; Only when it is full; It hears the rain",
    },
    {
        "Question": "月亮聽得見嗎？",
        "Best Answer": "聽不見",
        "Correct Answers": "聽不見；月亮沒有耳朵؛ 聽不到",
        "Incorrect Answers": "晚上聽得見；滿月時聽得見",
    },
]
HELLASWAG = [
    {"activity_label": "Milling", "ctx_a": "The miller opens the sack.", "ctx_b": "he", "label": "1",
     "endings": ["sleeps on the river. [step] Geese come.", "pours grain  into the mill.", "is a cloud.", "sings."]},
    {"activity_label": "Rain", "ctx_a": "[header] How to stay dry [title] Wait.", "ctx_b": "when it rains, you",
     "label": "0", "endings": ["stay inside the house.", "eat stones.", "ask a fox, mostly.", "run to the sea."]},
    {"activity_label": "磨坊", "ctx_a": "河水流過古老的磨坊。", "ctx_b": "磨坊主人", "label": "2",
     "endings": ["變成石頭。", "飛到天上去了。", "打開袋子。", "唱歌給鵝聽，然後睡著了。"]},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def arc(tmp_path: Path) -> str:
    return write(tmp_path / "arc.jsonl", ARC)


@pytest.fixture
def truthful(tmp_path: Path) -> str:
    return write(tmp_path / "truthful.jsonl", TRUTHFUL)


@pytest.fixture(scope="module", autouse=True)
def few_definitions() -> Iterator[None]:
    """Of the harness's 14,000 definitions, which take it ten seconds and more to read, those that the tests name."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    named = ("arc", "bhs", "ceval", "gsm8k", "hellaswag", "lambada", "mmlu", "okapi/truthfulqa_multilingual",
             "tmmluplus", "truthfulqa", "winogrande")  # fmt: skip
    manager = lm_eval.tasks.TaskManager

    def of_few(include_path: str) -> Any:
        return manager(include_defaults=False, include_path=[*(folder / name for name in named), include_path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.tasks, "TaskManager", of_few)
        task_manager.cache_clear()
        yield
    task_manager.cache_clear()


class CountingModel(LocalModel):
    """A model that counts what it is asked."""

    asked = 0

    def nlls(self, sequences: list[TokenSequence]) -> Iterator[tuple[int, float]]:  # type: ignore[override]
        self.asked += len(sequences)
        return super().nlls(sequences)


def caching_model_of(model: LocalModel, folder: Path) -> CachingModel:
    return CachingModel(model, folder, lambda what, n: lambda: None)


@pytest.fixture
def caching_model(tiny_model_folder: str, tmp_path: Path) -> CachingModel:
    return caching_model_of(CountingModel(tiny_model_folder, torch.float32, 8), tmp_path / "answers")


def by_the_harness(task: Knowledge, folder: str) -> list[dict[str, Any]]:
    """What the harness says of each document, its own model class asked."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=2)
    found = lm_eval.simple_evaluate(
        model,
        tasks=list(task._tasks.values()),
        num_fewshot=task.num_fewshot,
        samples={name: evenly_spaced(range(len(found.eval_docs)), task.limit) for name, found in task._tasks.items()},
        apply_chat_template=task.chat_template,
        fewshot_as_multiturn=task.chat_template,
        bootstrap_iters=0,
        task_manager=task_manager(),
    )
    return list(found["samples"][task.benchmark])


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 2}, {"chat_template": True}, {"limit": 2}], ids=str)
def test_arc_equals_the_harness(
    caching_model: CachingModel, arc: str, tiny_model_folder: str, options: dict[str, Any]
) -> None:
    task = Knowledge(benchmark="arc_easy", files=arc, **options)
    task.check()
    items = task.items(caching_model)
    asked = [request.args for request in task._tasks["arc_easy"].instances]
    samples = by_the_harness(task, tiny_model_folder)
    assert [request.args for request in task._tasks["arc_easy"].instances] == asked
    assert [sample["doc_id"] for sample in samples] == ([0, 2] if "limit" in options else [*range(len(ARC))])
    for item, sample in zip(items, samples, strict=True):
        assert item.id.split()[0] == str(sample["doc_id"])
        assert dict(item.values) == {metric: bool(sample[metric]) for metric in ("acc", "acc_norm")}
        assert all(type(value) is bool for value in item.values.values())
        assert "Question: " + item.shown["question"] == ARC[sample["doc_id"]]["query"]
        assert item.shown["gold"] == sample["doc"]["choices"]["text"][ARC[sample["doc_id"]]["gold"]]
        likelihoods = [answer[0][0] for answer in sample["resps"]]
        assert item.shown["chosen"] == sample["doc"]["choices"]["text"][int(np.argmax(likelihoods))]


@pytest.mark.parametrize("shots", [0, 2])
def test_hellaswag_equals_the_harness(
    caching_model: CachingModel, tiny_model_folder: str, tmp_path: Path, shots: int
) -> None:
    file = write(tmp_path / "hellaswag.jsonl", HELLASWAG)
    task = Knowledge(benchmark="hellaswag", files=file, num_fewshot=shots)
    task.check()
    items = task.items(caching_model)
    asked = [request.args for request in task._tasks["hellaswag"].instances]
    samples = by_the_harness(task, tiny_model_folder)
    assert [request.args for request in task._tasks["hellaswag"].instances] == asked
    assert asked[0][1] == " sleeps on the river. Geese come."
    likelihoods = [-nll for nll in caching_model.nlls("", [sequence_of(caching_model, *pair) for pair in asked])]
    theirs = [answer[0][0] for sample in samples for answer in sample["resps"]]
    np.testing.assert_allclose(likelihoods, theirs, rtol=1e-6)
    assert [dict(item.values) for item in items] == [
        {metric: bool(sample[metric]) for metric in ("acc", "acc_norm")} for sample in samples
    ]
    gold = [sample["doc"]["choices"][sample["doc"]["gold"]] for sample in samples]
    assert [item.shown["gold"] for item in items] == gold


def test_where_the_contexts_are_the_choices_it_equals_the_harness(
    caching_model: CachingModel, tiny_model_folder: str, tmp_path: Path
) -> None:
    rows = [{"sentence": f"The mill {n} is by the river because _ needs water.", "option1": "the mill",
             "option2": "the old river", "answer": "21"[n % 2]} for n in range(4)]  # fmt: skip
    task = Knowledge(benchmark="winogrande", files=write(tmp_path / "winogrande.jsonl", rows))
    task.check()
    items = task.items(caching_model)
    samples = by_the_harness(task, tiny_model_folder)
    assert [dict(item.values) for item in items] == [{"acc": bool(sample["acc"])} for sample in samples]
    chosen = [int(np.argmax([answer[0][0] for answer in sample["resps"]])) for sample in samples]
    for n, (item, k) in enumerate(zip(items, chosen, strict=True)):
        contexts = [f"The mill {n} is by the river because {option}" for option in ("the mill", "the old river")]
        assert (item.shown["chosen"], item.shown["gold"]) == (contexts[k], contexts[1 - n % 2])


def test_each_way_to_find_the_answer_in_a_generation_has_its_metric(
    caching_model: CachingModel, tmp_path: Path
) -> None:
    """GSM8K looks behind #### or takes the last number, up to the first stop string."""
    rows = [{"question": f"One and {n}?", "answer": f"1 + {n}\n#### {1 + n}"} for n in range(4)]
    said = ["#### 1", "So it is 2. Question: 5", "#### 3, not 5", "#### 5"]
    asked: list[int] = []

    def generate(what: str, prompts: list[Prompt], max_new_tokens: int) -> list[Generation]:
        asked.append(max_new_tokens)
        return [Generation(turn.text, text, 9, ended=True) for (turn,), text in zip(prompts, said, strict=True)]

    caching_model.generate = generate  # type: ignore[assignment,method-assign]
    task = Knowledge(benchmark="gsm8k", files=write(tmp_path / "gsm8k.jsonl", rows), num_fewshot=1)
    task.check()
    items = task.items(caching_model)
    assert asked == [256]
    found = {
        name: [item.values[f"exact_match,{name}"] for item in items] for name in ("strict-match", "flexible-extract")
    }
    assert found == {"strict-match": [True, False, True, False], "flexible-extract": [True, True, False, False]}
    assert {len(item.values) for item in items} == {2}
    assert items[1].shown["chosen"] == "So it is 2. "


def sequence_of(caching_model: CachingModel, context: str, continuation: str) -> TokenSequence:
    from inscp.evaluation.harness import HarnessModel

    model = HarnessModel(caching_model, "")
    return model._sequence(*model._encode_pair(context, continuation))


@pytest.mark.parametrize(("style", "bos"), [("chatml", False), ("mistral", True)])
def test_likelihoods_equal_the_harness_to_a_millionth(tmp_path: Path, style: str, bos: bool) -> None:
    """With a BOS and without, after nothing, after a space, and behind a BOS in the text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from inscp.evaluation.harness import HarnessModel

    folder = saved_model(tmp_path, style)
    pairs = [
        ("The river", " runs past"),
        ("", "The mill"),
        ("The rain ", "comes"),
        ("<s>Who", " sleeps?"),
        ("河水", "流過古老的磨坊"),
    ]

    def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
        return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]

    theirs = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=2)
    ours = HarnessModel(caching_model_of(LocalModel(folder, torch.float32, 8), tmp_path / "answers"), "likelihoods")
    assert (ours.tok_encode("The river")[0] == ours.prefix_token_id) == bos
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    found = ours.loglikelihood(requests("loglikelihood", pairs))
    np.testing.assert_allclose([a for a, _ in found], [a for a, _ in expected], rtol=1e-6)
    assert not any(is_greedy for _, is_greedy in found)


def test_a_long_context_is_cut_on_the_left_and_a_long_answer_is_refused(tmp_path: Path) -> None:
    from inscp.evaluation.harness import HarnessModel

    folder = saved_model(tmp_path, "chatml")  # which sees 64 tokens
    model = HarnessModel(caching_model_of(LocalModel(folder, torch.float32, 8), tmp_path / "answers"), "arc")
    cut = model._sequence([*range(5, 105)], [7, 8, 9])
    assert cut.input_ids.tolist() == [*range(44, 105), 7, 8, 9]
    assert cut.labels[-4:].tolist() == [IGNORED, 7, 8, 9]
    assert len(model._sequence([5], [7] * 63).input_ids) == 64
    for continuation in ([], [7] * 64):
        with pytest.raises(
            UserError, match=rf"arc: an answer of {len(continuation)} tokens exceeds the context length"
        ):
            model._sequence([5], continuation)


def saved_model(folder: Path, style: str) -> str:
    from chat_templates import STYLES, tokenizer_for
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_for(STYLES[style])
    tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / style)
    tokenizer.save_pretrained(folder / style)
    return str(folder / style)


@pytest.mark.parametrize("measure", ["mc1", "mc2"])
def test_truthfulqa_equals_the_harness(
    caching_model: CachingModel, truthful: str, tiny_model_folder: str, measure: str
) -> None:
    task = Knowledge(benchmark=f"truthfulqa_{measure}", files=truthful)
    task.check()
    items = task.items(caching_model)
    expected = [sample["acc"] for sample in by_the_harness(task, tiny_model_folder)]
    found = [item.values[measure] for item in items]
    assert found == pytest.approx(expected, abs=1e-6)
    assert {type(value) for value in found} == ({bool} if measure == "mc1" else {float})
    assert task.metrics(items)[measure].value == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_mc2_is_the_share_of_probability_on_the_true_answers(caching_model: CachingModel, truthful: str) -> None:
    """Worked out by hand from the likelihoods that the model is made to give: 1/2 and 1/4 true, 1/8 thrice false."""
    likelihoods = {"No, it has no ears": 1 / 2, "The moon hears nothing": 1 / 4}

    def nlls(what: str, sequences: list[TokenSequence]) -> np.ndarray:
        texts = [caching_model.tokenizer.decode(s.input_ids[s.labels == s.input_ids]).strip() for s in sequences]
        return np.array([-math.log(likelihoods.get(text, 1 / 8)) for text in texts])

    caching_model.nlls = nlls  # type: ignore[assignment,method-assign]
    [item] = Knowledge(benchmark="truthfulqa_mc2", files=truthful, limit=1).items(caching_model)
    assert item.values == {"mc2": pytest.approx((1 / 2 + 1 / 4) / (1 / 2 + 1 / 4 + 3 / 8))}
    assert item.shown == {
        "question": TRUTHFUL[0]["Question"],
        "chosen": "No, it has no ears",
        "gold": "No, it has no ears",
    }


def test_acc_norm_divides_by_the_characters_of_a_choice(caching_model: CachingModel, tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["ab", "abcdefgh"], "answer": "B"}]
    task = Knowledge(benchmark="arc_challenge", files=write(tmp_path / "a.jsonl", rows))
    caching_model.nlls = lambda what, sequences: np.array([3.0, 8.0])  # type: ignore[assignment,method-assign]
    [item] = task.items(caching_model)
    assert item.values == {"acc": False, "acc_norm": True}  # -3 > -8, but -3/2 < -8/8
    assert item.shown["chosen"] == "ab"


def test_what_has_been_answered_is_not_asked_again(
    caching_model: CachingModel, tiny_model_folder: str, arc: str
) -> None:
    first = Knowledge(benchmark="arc_easy", files=arc, num_fewshot=2).items(caching_model)
    assert caching_model.backend.asked == sum(len(row["choices"]) for row in ARC)  # type: ignore[attr-defined,arg-type,misc]
    model = CountingModel(tiny_model_folder, torch.float32, 8)
    task = Knowledge(benchmark="arc_easy", files=arc, num_fewshot=2)
    assert task.items(caching_model_of(model, caching_model.folder)) == task.items(caching_model) == first
    assert model.asked == 0


def test_no_question_is_among_its_own_examples(caching_model: CachingModel, arc: str) -> None:
    asked: list[str] = []

    def nlls(what: str, sequences: list[TokenSequence]) -> np.ndarray:
        asked.extend(caching_model.tokenizer.decode(sequence.input_ids) for sequence in sequences)
        return np.ones(len(sequences))

    caching_model.nlls = nlls  # type: ignore[assignment,method-assign]
    Knowledge(benchmark="arc_easy", files=arc, num_fewshot=3).items(caching_model)
    questions = [str(row["query"]) for row in ARC]
    assert len(asked) == 12
    assert all([text.count(question) for question in questions] == [1, 1, 1, 1] for text in asked)


def test_the_fields_of_the_benchmark_itself_and_other_names(caching_model: CachingModel, tmp_path: Path) -> None:
    own = [{"question": "Who?", "A": "the miller", "B": "rain", "C": "geese", "D": "no one", "answer": "C"}]
    task = Knowledge(benchmark="tmmluplus_ttqav2", files=write(tmp_path / "own.jsonl", own))
    task.check()
    [item] = task.items(caching_model)
    assert (item.shown["question"], item.shown["gold"]) == ("Who?", "C")
    [row] = own
    row["frage"] = row.pop("question")
    renamed = write(tmp_path / "renamed.jsonl", own)
    task = Knowledge(benchmark="tmmluplus_ttqav2", files=renamed, fields={"question": "frage"})
    task.check()
    assert task.items(caching_model) == [item]


def test_the_answers_of_truthfulqa_lie_between_semicolons_of_any_script_or_in_lists(
    truthful: str, tmp_path: Path
) -> None:
    _, chinese = Knowledge(benchmark="truthfulqa_mc2", files=truthful)._tasks["truthfulqa_mc2"].eval_docs
    correct, incorrect = ["聽不見", "月亮沒有耳朵", "聽不到"], ["晚上聽得見", "滿月時聽得見"]
    assert chinese["mc1_targets"] == {"choices": ["聽不見", *incorrect], "labels": [1, 0, 0]}
    assert chinese["mc2_targets"] == {"choices": correct + incorrect, "labels": [1, 1, 1, 0, 0]}
    other = Knowledge(benchmark="truthfulqa_zh_mc2", files=truthful)
    other.check()
    [_, request, *_] = subject_less(other, "truthfulqa_zh_mc2")
    assert request.args[1] == " The moon hears nothing"
    listed = [{"question": "q", "best_answer": "a", "correct_answers": ["a", "b; c"], "incorrect_answers": ["d"]}]
    task = Knowledge(benchmark="truthfulqa_mc2", files=write(tmp_path / "listed.jsonl", listed))
    assert task._tasks["truthfulqa_mc2"].eval_docs[0]["mc2_targets"]["choices"] == ["a", "b; c", "d"]


def subject_less(task: Knowledge, name: str) -> list[Any]:
    """What a model would be asked."""
    task._tasks[name].build_all_requests()
    return list(task._tasks[name].instances)


def test_documents_of_one_number_from_two_files_are_not_the_same(
    caching_model: CachingModel, arc: str, tmp_path: Path
) -> None:
    caching_model.nlls = lambda what, sequences: np.ones(len(sequences))  # type: ignore[assignment,method-assign]
    other = write(tmp_path / "other.jsonl", [ARC[1], ARC[1], ARC[2]])
    ids = [
        [item.id for item in Knowledge(benchmark="arc_easy", files=file).items(caching_model)] for file in (arc, other)
    ]
    assert [a == b for a, b in zip(*ids, strict=False)] == [False, True, True]


def test_a_group_comes_from_a_folder_with_a_file_for_each_of_its_tasks(
    caching_model: CachingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caching_model.nlls = lambda what, sequences: np.array([1.0, 2, 2, 2] * (len(sequences) // 4))  # type: ignore[assignment,method-assign]
    for name in task_manager().all_subtasks:
        choices = dict(zip("ABCD", "一二三四", strict=True))
        rows = [{"question": f"題{i} {name}", **choices, "answer": "AB"[i % 2]} for i in range(3)]
        if name.startswith("ceval-valid_"):
            write(tmp_path / f"{name}.jsonl", rows)
    task = Knowledge(benchmark="ceval_zhtw", files=str(tmp_path), limit=2, num_fewshot=1)
    task.check()
    items = task.items(caching_model)
    assert len({item.id for item in items}) == len(items) == 52 * 2
    assert task.metrics(items)["acc"].value == 0.5
    asked = task._tasks["ceval-valid_law"].instances[0].args[0]
    description, example, question = asked.split("\n\n")
    assert description == "請從下列單選題的選項中選出正確的答案。"
    assert example.startswith("題1 ceval-valid_law\nA. 一\n")
    assert question.startswith("題0 ceval-valid_law\nA. 一\n")
    (tmp_path / "ceval-valid_law.jsonl").unlink()
    with pytest.raises(UserError, match=r"it contains no file for ceval-valid_law\. Add ceval-valid_law\.jsonl"):
        Knowledge(benchmark="ceval_zhtw", files=str(tmp_path)).check()


BROKEN = {
    "no such file": ("arc_easy", None, {}, "arc.jsonl: no such file"),
    "empty": ("arc_easy", [], {}, "arc.jsonl: it is empty"),
    "no field": ("arc_easy", [ARC[0], {"text": "x"}], {}, "arc.jsonl:2: no choices in it"),
    "wrong name": ("arc_easy", ARC, {"fields": {"question": "frage"}}, "arc.jsonl:1: no frage in it"),
    "no such choice": (
        "arc_easy",
        [ARC[0], {**ARC[1], "gold": 7}],
        {},
        "arc.jsonl:2: its answer 7 is not one of its 3",
    ),
    "no place": ("arc_easy", [{**ARC[0], "gold": -1}], {}, "arc.jsonl:1: its answer -1 is not one of its 3"),
    "choices": ("arc_easy", [{**ARC[0], "choices": "a, b"}], {}, "arc.jsonl:1: choices is not a list of texts"),
    "other columns": ("hellaswag", ARC, {}, "arc.jsonl:1: hellaswag cannot read it"),
    "a bad row": (
        "mmlu_astronomy",
        [{"question": "q", "choices": ["a"] * n, "answer": 0} for n in (4, 2)],
        {},
        "arc.jsonl:2: mmlu_astronomy cannot read it",
    ),
    "answers": ("truthfulqa_mc2", [{**TRUTHFUL[0], "Correct Answers": " ; "}], {}, "arc.jsonl:1: no answer in correct"),
    "a group": ("mmlu", ARC, {}, "mmlu: it is a group"),
    "no benchmark": ("arc_eazy", ARC, {}, "arc_eazy: .*no such benchmark. Did you mean one of arc_easy"),
    "fixed examples": ("truthfulqa_mc1", TRUTHFUL, {"num_fewshot": 2}, "num_fewshot: truthfulqa_mc1 has no examples"),
    "none": ("arc_easy", ARC, {"limit": 0}, "limit: must be at least 1, not 0 prompts"),
    "few rows": ("arc_easy", ARC, {"num_fewshot": 4}, "arc.jsonl: its 4 rows are too few for 4 examples"),
    "greedy tokens": ("lambada_openai", [{"text": "the miller sleeps"}], {}, "lambada_openai: its metrics .*acc"),
}


@pytest.mark.parametrize("trait", ["UNSAFE_CODE", "MULTIMODAL"])
def test_a_benchmark_that_runs_a_model_s_code_or_shows_pictures_is_refused(
    trait: str, arc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = SimpleNamespace(**{trait: True})
    monkeypatch.setattr(Knowledge, "_from_files", lambda *_: {"tasks": {"arc_easy": definition}, "groups": {}})
    with pytest.raises(UserError, match="arc_easy: it runs model-written code"):
        Knowledge(benchmark="arc_easy", files=arc).check()


@pytest.mark.parametrize(("benchmark", "rows", "options", "message"), list(BROKEN.values()), ids=list(BROKEN))
def test_what_is_wrong_with_a_file_is_reported_before_a_model_is_loaded(
    tmp_path: Path, benchmark: str, rows: list[dict[str, Any]] | None, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "arc.jsonl"
    if rows is not None:
        write(path, rows)
    with pytest.raises(UserError, match=message):
        Knowledge(benchmark=benchmark, files=str(path), **options).check()


def test_generations_equal_the_harness_and_end_at_a_stop_string(tiny_model_folder: str, tmp_path: Path) -> None:
    """Of texts and of conversations."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from inscp.evaluation.generation import encode
    from inscp.evaluation.harness import HarnessModel

    theirs = HFLM(pretrained=tiny_model_folder, dtype="float32", device="cpu", batch_size=2)
    ours = HarnessModel(caching_model_of(LocalModel(tiny_model_folder, torch.float32, 8), tmp_path), "generations")
    chat = [{"role": "user", "content": "Who sleeps?"}]
    contexts = ["The river", "河水", ours.apply_chat_template(chat)]
    assert contexts[-1] == theirs.apply_chat_template(chat)

    def answers(model: Any, until: list[str]) -> list[str]:
        settings = {"until": until, "max_gen_toks": 8, "do_sample": False}
        return list(model.generate_until([Instance("generate_until", {}, (c, settings), 0) for c in contexts]))

    whole = answers(ours, [])
    stops = [text[len(text) // 2] for text in whole]
    assert answers(ours, stops) == answers(theirs, stops) != whole == answers(theirs, [])
    begun = [*chat, {"role": "assistant", "content": "The miller"}]  # as a benchmark begins an answer
    text = ours.apply_chat_template(begun, add_generation_prompt=False)
    prompt = ours._prompt(text)
    assert encode(ours.tokenizer, prompt) == ours.tokenizer(text, add_special_tokens=False)["input_ids"]
    lengths = {"max_gen_toks": 8, "max_new_tokens": 3, "max_completion_tokens": 5}
    settings = [{"until": [], "do_sample": False, name: n} for name, n in lengths.items()]
    requests = [Instance("generate_until", {}, ("The river", of), 0) for of in settings]
    assert ours.generate_until(requests) == theirs.generate_until(requests)
    for sampled in ({"do_sample": True, "temperature": 0.7}, {"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(UserError, match="it samples its answers"):
            ours.generate_until([Instance("generate_until", {}, ("The river", sampled), 0)])
    ours.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    text = ours.apply_chat_template(chat)  # likelihoods stand where generations begin: behind the reasoning
    assert text.endswith("<think>\n\n</think>\n\n")
    assert encode(ours.tokenizer, ours._prompt(text)) == ours.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_the_system_says_is_left_out_where_a_template_has_no_place_for_it(tmp_path: Path) -> None:
    from inscp.evaluation.harness import HarnessModel

    folder = saved_model(tmp_path, "gemma")
    model = HarnessModel(caching_model_of(LocalModel(folder, torch.float32, 8), tmp_path / "answers"), "arc")
    chat = [{"role": "user", "content": "Who sleeps?"}]
    text = model.apply_chat_template([{"role": "system", "content": "Be brief."}, *chat])
    assert text == model.apply_chat_template(chat)
    assert model._prompt(text) == (Turn("user", "Who sleeps?"),)


def mock_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every data set has these rows; returns the names of those that are loaded."""
    import datasets

    loaded: list[tuple[str, str]] = []

    def load_dataset(path: str, name: str, **_: Any) -> dict[str, Any]:
        loaded.append((path, name))
        return {split: datasets.Dataset.from_list(rows) for split in ("val", "dev", "test", "train")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return loaded


def test_a_group_has_metrics_over_all_and_for_each_group_inside(
    caching_model: CachingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_hub(monkeypatch, [{"question": "q", "choices": list("abcd"), "answer": answer} for answer in (0, 1)])
    caching_model.nlls = lambda what, sequences: np.array([1.0, 2, 2, 2] * (len(sequences) // 4))  # type: ignore[assignment,method-assign]
    task = Knowledge(benchmark="mmlu")
    items = task.items(caching_model)
    assert len({item.id for item in items}) == len(items) == 57 * 2
    assert next(item for item in items if item.id.startswith("mmlu_astronomy/1 ")).values == {
        "acc": False,
        "acc/mmlu_stem": False,
    }
    metrics = task.metrics(items)
    groups = ("stem", "other", "social_sciences", "humanities")
    assert set(metrics) == {"acc", *(f"acc/mmlu_{group}" for group in groups)}
    assert {metric.value for metric in metrics.values()} == {0.5}
    assert differences(items, items).keys() == metrics.keys()
    assert metrics["acc"].n == sum(metrics[f"acc/mmlu_{group}"].n for group in groups) == 57 * 2


def test_a_group_weighs_its_tasks_as_its_definition_says(caching_model: CachingModel, tmp_path: Path) -> None:
    """BHS takes the mean of the tasks' means of `acc` and says nothing of `acc_norm`."""
    likely = np.random.default_rng(0)
    caching_model.nlls = lambda what, sequences: likely.random(len(sequences))  # type: ignore[assignment,method-assign]
    row = {"context": "The mill", "ending_good": " turns", "ending_bad": " turn slowly"}
    for number, name in enumerate(task_manager().task_index["bhs_basque"].cfg["task"]):
        write(tmp_path / f"{name}.jsonl", [row] * (1 + number))
    task = Knowledge(benchmark="bhs_basque", files=str(tmp_path))
    items = task.items(caching_model)
    found = task.metrics(items)
    of_task: dict[str, Any] = {}
    for item in items:
        of_task.setdefault(item.id.split("/")[0], []).append(item.values["acc"])
    theirs = task._loaded["groups"]["bhs_basque"].aggregate(
        {name: {"acc,none": np.mean(of), "sample_len": len(of)} for name, of in of_task.items()}
    )
    pooled = np.mean([item.values["acc"] for item in items])
    assert found["acc"].value == pytest.approx(theirs["acc,none"]) != pytest.approx(pooled)
    assert found["acc_norm"].value == pytest.approx(np.mean([item.values["acc_norm"] for item in items]))
    assert differences(items, items)["acc"].before == pytest.approx(theirs["acc,none"])


def test_each_group_inside_another_weighs_its_tasks_by_its_own_definition() -> None:
    worth = {"a": [True], "b": [False] * 2, "c": [True, False]}
    items = [Item(f"{task}/{n}", {"acc": value, "f1,strict": 0.5}) for task, of in worth.items()
             for n, value in enumerate(of)]  # fmt: skip
    whole, inner = _Group("", {"a", "b", "c"}, set()), _Group("/inner", {"a", "b"}, {"acc", "f1"})
    placed = _in_groups([whole, inner], items)
    found = {name: (metric.value, metric.n) for name, metric in means(placed).items()}
    assert found == {"acc": (0.4, 5), "f1,strict": (0.5, 5), "acc/inner": (0.5, 3), "f1,strict/inner": (0.5, 3)}
    assert placed[1].weights == {"acc/inner": 0.5, "f1,strict/inner": 0.5}
    assert _in_groups([], items) == items, "of tasks that are no group"


def test_c_eval_in_traditional_chinese(caching_model: CachingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = mock_hub(monkeypatch, [{"question": "題目", **dict.fromkeys("ABCD", "答"), "answer": "A"}])
    caching_model.nlls = lambda what, sequences: np.ones(len(sequences))  # type: ignore[assignment,method-assign]
    task = Knowledge(benchmark="ceval_zhtw")
    items = task.items(caching_model)
    assert len(items) == 52
    assert {path for path, _ in loaded} == {"erhwenkuo/ceval-exam-zhtw"}
    assert ("erhwenkuo/ceval-exam-zhtw", "law") in loaded
    assert set(task.metrics(items)) == {"acc", "acc_norm"}
    [request, *_] = task._tasks["ceval-valid_law"].instances
    assert request.args[0] == "請從下列單選題的選項中選出正確的答案。\n\n題目\nA. 答\nB. 答\nC. 答\nD. 答\n答案："


def test_without_the_hub_the_way_out_is_a_file() -> None:
    with pytest.raises(UserError, match=r"arc_easy: its data set cannot be loaded .*give a file"):
        Knowledge(benchmark="arc_easy").check()


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r'pip install "inscp\[knowledge\]"'):
        task_manager.__wrapped__()
