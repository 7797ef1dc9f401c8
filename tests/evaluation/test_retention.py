"""Retention: nothing diverges from itself, and what does is measured as the definition has it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import changed_models
import numpy as np
import pytest
import torch
from chat_templates import STYLES, tokenizer_for
from named_metrics import are_named
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from inscp.data.tagging import PlainTagger
from inscp.data.template import ChatTemplate
from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.results import Metric
from inscp.evaluation.tasks.retention import Retention, _agreement, _answered, _divergence
from inscp.model.loss import NextTokenLoss
from inscp.pretrained import load_tokenizer
from inscp.records import IGNORED, Generation, LeftContext, Record, TokenSequence, Turn

TEXTS = ["The river runs to the sea.", "夜市很熱鬧。", "A longer text about nothing much, that goes on for a while."]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> str:
    return changed_models.moved(tiny_model_folder, tmp_path_factory.mktemp("moved") / "model")


def measured(folder: Path, model: str, **options: object) -> dict[str, Metric]:
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"Tell me of {i}"}) for i in range(5)))
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    task = Retention(held_out={"x": str(folder / "texts.jsonl")}, prompts=str(folder / "prompts.jsonl"),
                     max_new_tokens=12, **options)  # type: ignore[arg-type]  # fmt: skip
    task.check()
    caching_model = CachingModel(
        LocalModel(model, torch.float32, 64), folder / "results.items", lambda *_: lambda: None
    )
    return task.metrics(task.items(caching_model))


def test_a_model_keeps_all_of_itself(tmp_path: Path, tiny_model_folder: str) -> None:
    found = measured(tmp_path, tiny_model_folder, original=tiny_model_folder, limit=2)
    assert (found["agreement"].value, found["same_answer"].value) == (1, 1)
    assert (found["agreement"].n, found["held_out/x/loss"].n) == (2, len(TEXTS))
    assert found["kl"].value == pytest.approx(0, abs=1e-6)
    assert are_named(found, Retention(held_out={"x": "texts"}, prompts="prompts"))


def test_a_model_is_asked_where_it_is_known_what_to_compare_with() -> None:
    texts = {"x": "texts"}
    assert Retention(held_out=texts, prompts="prompts", original="original").chats
    assert not Retention(held_out=texts, original="original").chats
    assert not Retention(held_out=texts, prompts="prompts").chats, "a base model has no original"


def test_divergence_is_that_of_the_definition(tmp_path: Path, moved: str, tiny_model_folder: str) -> None:
    found = measured(tmp_path, moved)
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (tiny_model_folder, moved))
    tokenizer, total, count = load_tokenizer(moved), 0.0, 0
    template = ChatTemplate(tokenizer).literals(("user", "assistant"))
    original = CachingModel(
        LocalModel(tiny_model_folder, torch.float32, 1), tmp_path / "alone", lambda *_: lambda: None
    )
    for i in range(5):
        answer = original.generate("", [(Turn("user", f"Tell me of {i}"),)], 12)
        said = tokenizer(answer[0].response, add_special_tokens=False)["input_ids"]
        asked = [
            *template[0].ids,
            *tokenizer(f"Tell me of {i}", add_special_tokens=False)["input_ids"],
            *template[1].ids,
        ]
        ids = torch.tensor([asked + said])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(asked) - 1 : -1].double().softmax(-1) for m in (before, after))
        total += float((p * (p / q).log()).sum())
        count += len(said)
    assert found["kl"].value == pytest.approx(total / count, rel=1e-3)
    assert found["kl"].value > 0
    assert found["agreement"].value < 1
    assert found["same_answer"].value < 1


def test_the_end_of_a_turn_is_part_of_the_answer(tiny_model_folder: str) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    end = ChatTemplate(tokenizer).end_of_turn_id
    cut, ended = (
        _answered(
            tokenizer, (Turn("user", "Tell me."),), Generation("Tell me.", "Never.", 3, is_over), LeftContext(), end
        )
        for is_over in (False, True)
    )
    assert ended.input_ids.tolist() == [*cut.input_ids.tolist(), end]
    assert ended.n_targets == cut.n_targets + 1


def test_agreement_counts_the_tokens_of_the_answer_that_diverges() -> None:
    tokenizer = tokenizer_for(replace(STYLES["qwen_3"], plain_tokens=("<think>", "</think>")))
    before, after = "<think> Never.", "<think>"
    old, new = (
        _answered(tokenizer, (Turn("user", "Why?"),), Generation("Why?", said, 3, False), LeftContext(), 0)
        for said in (before, after)
    )
    assert _agreement(tokenizer, before, after) == new.n_targets / old.n_targets
    assert _agreement(tokenizer, after, before) == 1, "all of the original's is there"
    assert [_agreement(tokenizer, "", said) for said in ("", "Never.")] == [1, 0]


@pytest.mark.parametrize(("rows", "of_original"), [(70, 64), (64, 70)])
def test_divergence_is_over_the_rows_that_both_vocabularies_have(rows: int, of_original: int) -> None:
    """An extended one takes probability from the others; models of one family may be padded to two sizes."""
    torch.manual_seed(0)
    made = [
        LlamaForCausalLM(
            LlamaConfig(vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2, initializer_range=0.5, pad_token_id=0, eos_token_id=1)
        ).eval()
        for size in (of_original, rows)
    ]  # fmt: skip
    ids = np.arange(2, 12, dtype=np.int32)
    sequence = TokenSequence("", ids, np.where(ids < 5, IGNORED, ids))
    with torch.no_grad():
        p, q = (m(torch.tensor(ids[None]).long()).logits[0, 2:-1].double().softmax(-1)[:, :64] for m in made)
    original, model = (SimpleNamespace(loss=NextTokenLoss(m)) for m in made)
    found = _divergence(original, model, sequence)  # type: ignore[arg-type]
    assert found == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


def test_the_original_is_the_model_that_was_not_made_here(moved: str, tiny_model_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    shutil.copytree(moved, folder)
    before = json.loads((folder / "inscp.json").read_text("utf-8"))
    second = {"pretrained": moved, "arm": "SFT", "language": "fi", "before": before}
    (folder / "inscp.json").write_text(json.dumps(second), "utf-8")
    assert Retention()._original(str(folder)) == Retention()._original(moved) == tiny_model_folder


def test_held_out_loss_is_of_text_and_end_of_turn(tmp_path: Path, tiny_model_folder: str) -> None:
    found = measured(tmp_path, tiny_model_folder)
    assert "kl" not in found  # nothing says what it was made from
    tokenizer, model = load_tokenizer(tiny_model_folder), AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    template, total, count = ChatTemplate(tokenizer), 0.0, 0
    for text in TEXTS:
        before = list(template.before_assistant().ids)
        said = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*before, *said, *template.after_assistant]])
        labels = ids.clone()
        labels[:, : len(before)] = -100
        with torch.no_grad():
            n = ids.shape[1] - len(before)
            total += float(model(ids, labels=labels).loss) * n
            count += n
    assert found["held_out/x/loss"].value == pytest.approx(total / count, rel=1e-5)
    assert found["held_out/x/perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["held_out/x/perplexity"].n == len(TEXTS)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found["held_out/x/bits_per_byte"].value == pytest.approx(total / math.log(2) / n_bytes, rel=1e-5)


def test_held_out_text_may_be_presented_as_plain_pre_training_sees_it(tmp_path: Path, tiny_model_folder: str) -> None:
    found = measured(tmp_path, tiny_model_folder, tagger=PlainTagger())
    tokenizer, model = load_tokenizer(tiny_model_folder), AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    (end,) = PlainTagger().bind(tokenizer)(Record("here", (Turn("document", "a"),)))[0].parts[-1].ids  # type: ignore
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], end]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found["held_out/x/loss"].value == pytest.approx(total / count, rel=1e-5)
    task = Retention(held_out={"x": "texts"}, tagger=PlainTagger())
    assert "PlainTagger" in task.settings["tagger"]


def test_held_out_texts_are_the_same_ones_in_another_folder(tmp_path: Path, tiny_model_folder: str) -> None:
    found = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
        task = Retention(held_out={"x": str(folder / "texts.jsonl")})
        caching_model = CachingModel(
            LocalModel(tiny_model_folder, torch.float32, 64), folder / "items", lambda *_: lambda: None
        )
        found.append([item.id for item in task.items(caching_model)])
    assert found[0] == found[1]
    assert len(set(found[0])) == len(TEXTS)


def test_a_held_out_text_is_one_item_into_however_many_pieces_it_is_cut(
    tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    task = Retention(held_out={"x": str(tmp_path / "texts.jsonl")})
    found = []
    for window in (2048, 24):
        monkeypatch.setattr("inscp.evaluation.tasks.retention._WINDOW", window)
        backend = LocalModel(tiny_model_folder, torch.float32, 64)
        found.append(task.items(CachingModel(backend, tmp_path / f"{window}", lambda *_: lambda: None)))
    whole, cut = found
    assert [item.id for item in cut] == [item.id for item in whole]
    assert [item.weights["held_out/x/bits_per_byte"] for item in whole] == [len(text.encode()) for text in TEXTS]
    tokens = [[item.weights["held_out/x/loss"] for item in items] for items in found]
    assert tokens[0][0] == tokens[1][0], "a short one is not cut"
    assert tokens[0][2] < tokens[1][2], "the end of a turn is predicted once a piece"


def test_a_base_model_is_measured_on_the_text_alone(tmp_path: Path, tiny_model_folder: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    (base / "chat_template.jinja").unlink()
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    task = Retention(held_out={"x": str(tmp_path / "texts.jsonl")})
    caching_model = CachingModel(
        LocalModel(str(base), torch.float32, 64), tmp_path / "results.items", lambda *_: lambda: None
    )
    items = task.items(caching_model)
    tokens = [len(load_tokenizer(str(base))(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    weights = [item.weights["held_out/x/loss"] for item in items]
    assert all(abs(weight - count) <= 1 for weight, count in zip(weights, tokens, strict=True))


def test_an_original_of_another_family_is_reported(moved: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(STYLES["mistral"])
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Who?"}', "utf-8")
    task = Retention(prompts=str(prompts), original=str(tmp_path / "other"))
    caching_model = CachingModel(LocalModel(moved, torch.float32, 64), tmp_path / "items", lambda *_: lambda: None)
    with pytest.raises(UserError, match="its vocabulary differs from that of the original"):
        task.items(caching_model)


def test_a_template_that_nobody_can_train_on_is_compared_all_the_same(tiny_model_folder: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}\n{% endfor %}"
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Who?"}', "utf-8")
    task = Retention(prompts=str(tmp_path / "prompts.jsonl"), original=str(tmp_path / "model"), max_new_tokens=8)
    caching_model = CachingModel(
        LocalModel(str(tmp_path / "model"), torch.float32, 64), tmp_path / "items", lambda *_: lambda: None
    )
    found = task.metrics(task.items(caching_model))
    assert found["kl"].value == pytest.approx(0, abs=1e-6)


def test_a_window_that_slides_counts_in_the_divergence_as_in_the_training(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    """A model whose window is wider than the text is the same with none, and another one with a narrow window."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny_model_folder)
    config = MistralConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                           num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5)  # fmt: skip
    model = MistralForCausalLM(config)
    for window in (6, 4096):
        model.config.sliding_window = window
        model.save_pretrained(tmp_path / str(window))
        tokenizer.save_pretrained(tmp_path / str(window))
    narrow, wide = (LocalModel(str(tmp_path / str(window)), torch.float32, 8) for window in (6, 4096))
    sequence = _answered(
        tokenizer, (Turn("user", "Who sleeps?"),), Generation("", "The river " * 6, 9, False), LeftContext(), 1
    )
    alike = MistralForCausalLM.from_pretrained(tmp_path / "6", attn_implementation="eager")
    with torch.no_grad():
        logits = [m(torch.tensor(sequence.input_ids[None]).long()).logits[0].log_softmax(-1) for m in (alike, model)]
    said = torch.tensor(sequence.labels[1:] != -100).nonzero()[:, 0]
    expected = torch.nn.functional.kl_div(logits[1][said], logits[0][said], reduction="batchmean", log_target=True)
    assert _divergence(narrow, narrow, sequence) == 0
    assert _divergence(narrow, wide, sequence) == pytest.approx(float(expected), rel=1e-3)
    assert expected > 0.01
