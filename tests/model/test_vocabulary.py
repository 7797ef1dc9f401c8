"""More tokens for a language: they are what byte-pair encoding would find next, and nothing else changes."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from chat_templates import STYLES, tokenizer_for
from corpus import write_corpus
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from inscp.__main__ import main
from inscp.data.rendering import render
from inscp.data.special_tokens import plain_text_tokenizer, special_ids
from inscp.data.template import prompt_ids
from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.tasks.retention import Retention
from inscp.model.export import export_model
from inscp.model.merging import Average, ElChat, merged
from inscp.model.origin import EXTENDED, Origin, read_origin
from inscp.model.vocabulary import count_tokens, extended, learn_tokens, resize_embeddings
from inscp.pretrained import load_model, load_tokenizer

TEXTS = [
    "夜市是台灣人晚上吃東西的地方，夜市很熱鬧。",
    "台灣的夜市有很多小吃，台灣人都喜歡。在 2024 年有 2024 個。",
    "ตลาดกลางคืนมีของกินมากมาย ตลาดกลางคืนคึกคัก",
    "Yötorilla syödään iltaisin, ja yötorilla on vilkasta. Yötori on täynnä <|im_end|> ihmisiä.",
] * 3
ENGLISH = "The quick brown fox jumps over 12 lazy dogs; who knows why?"
KINDS = {"chatml": "byte-level", "llama_2": "SentencePiece", "mistral": "SentencePiece, spaces apart"}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return tokenizer_for(STYLES[request.param])


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_texts_have_fewer_tokens_and_are_the_same_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    longer = extended(tokenizer, extension := learn_tokens(tokenizer, TEXTS, 60))
    assert len(extension.made_of) == 60
    assert count_tokens(longer, TEXTS) < 0.7 * count_tokens(tokenizer, TEXTS)
    for text in [*TEXTS, ENGLISH]:
        assert longer.decode(ids_of(longer, text)) == tokenizer.decode(ids_of(tokenizer, text))


def test_the_tokenizer_s_own_tokens_keep_their_ids_and_the_new_ones_follow(tokenizer: PreTrainedTokenizerBase) -> None:
    longer = extended(tokenizer, extension := learn_tokens(tokenizer, TEXTS, 60))
    own, every = tokenizer.get_vocab(), longer.get_vocab()
    assert own.items() <= every.items()
    assert [every[token] for token in extension.made_of] == list(range(len(own), len(own) + 60))
    assert special_ids(longer) == special_ids(tokenizer)
    assert ids_of(longer, ENGLISH) == ids_of(tokenizer, ENGLISH)
    turns = [{"role": "user", "content": "夜市？"}]
    assert render(longer, turns) == render(tokenizer, turns)


def test_a_new_token_stands_for_those_that_stood_in_its_place(tokenizer: PreTrainedTokenizerBase) -> None:
    longer = extended(tokenizer, extension := learn_tokens(tokenizer, TEXTS, 60))
    made_of = {longer.get_vocab()[token]: ids for token, ids in extension.made_of.items()}
    for text in TEXTS:
        spelled = [index for new in ids_of(longer, text) for index in made_of.get(new, [new])]
        assert spelled == ids_of(tokenizer, text)


def test_every_token_is_reached_or_is_part_of_a_longer_one(tokenizer: PreTrainedTokenizerBase) -> None:
    longer = extended(tokenizer, extension := learn_tokens(tokenizer, TEXTS, 60))
    used = {longer.convert_ids_to_tokens(index) for text in TEXTS for index in ids_of(longer, text)}
    parts = {part for pair in extension.merges for part in pair}
    assert extension.made_of.keys() <= used | parts


def test_the_first_new_token_is_the_most_frequent_pair_inside_words(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["zqzq zqzq zq", "qx zq 77 77 77 77 77 77"]
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        for word in text.split(" "):
            tokens = chatml_tokenizer.convert_ids_to_tokens(ids_of(chatml_tokenizer, word))
            pairs.update(pair for pair in pairwise(tokens) if not word.isdigit())
    (best, count), (_, second) = pairs.most_common(2)
    assert count > second
    extension = learn_tokens(chatml_tokenizer, texts, 3)
    assert extension.merges[0] == best
    assert not any("7" in token for token in extension.made_of), "numbers keep their digits"


def test_nothing_is_learned_across_words_or_from_letters_and_what_is_none(tokenizer: PreTrainedTokenizerBase) -> None:
    longer = extended(tokenizer, extension := learn_tokens(tokenizer, TEXTS, 200))
    first = len(tokenizer.get_vocab())
    for token in (longer.decode([index]).strip() for index in range(first, first + len(extension.made_of))):
        whole = [character for character in token if character != "\ufffd"]
        assert " " not in token
        assert len({character.isalpha() or character.isidentifier() for character in whole if ord(character) > 127
                    and not "\u0e00" < character < "\u0e7f"}) <= 1, token  # fmt: skip


def test_characters_that_were_bytes_become_tokens() -> None:
    tokenizer = tokenizer_for(STYLES["llama_2"])
    rare = "龘"
    assert all(token.startswith("<0x") for token in tokenizer.tokenize(rare) if token != "▁")
    extension = learn_tokens(tokenizer, [f"{rare}的{rare}", "驫"], 10)
    assert list(extension.made_of) == [rare]  # the other ones come once
    assert len(extension.made_of[rare]) == 3
    assert rare in extended(tokenizer, extension).tokenize(rare)[-1]


def test_frequent_pairs_come_before_rare_characters() -> None:
    tokenizer = tokenizer_for(STYLES["llama_2"])
    extension = learn_tokens(tokenizer, ["kvw " * 20, "龘的龘"], 2)
    assert len(extension.made_of) == 2
    assert "龘" not in extension.made_of


def test_what_templates_write_keeps_its_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    longer = extended(tokenizer, learn_tokens(tokenizer, ["夜市\n\n夜市\n|| 夜市\n\n|", *TEXTS], 100))
    for text in ("<|user|>\nhi\n\n", "a|b\n", "\n\n\n"):
        assert ids_of(longer, text) == ids_of(tokenizer, text)
    turns = [{"role": "user", "content": "Who?"}]
    assert prompt_ids(longer, turns) == prompt_ids(tokenizer, turns)


def test_a_word_becomes_one_token_with_the_space_before_it(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "το ποτάμι περνά από τον παλιό μύλο"
    longer = extended(tokenizer, learn_tokens(tokenizer, [text] * 5, 2000))
    assert len(ids_of(longer, f"{text} {text}")) == 2 * len(text.split())


def test_joiners_stand_inside_words(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "می\u200cگذرد"
    longer = extended(tokenizer, learn_tokens(tokenizer, [text] * 5, 500))
    assert len(ids_of(longer, text)) < len(ids_of(tokenizer, text))
    if STYLES["chatml"].template != tokenizer.chat_template:  # whose pre-tokenizer ends words there
        assert len(ids_of(longer, text)) == 1


def test_an_added_token_stays_what_it_is() -> None:
    tokenizer = tokenizer_for(STYLES["chatml"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["|||"]})
    longer = extended(tokenizer, learn_tokens(tokenizer, ["a ||| b ||| c |||| d"] * 9, 50))
    assert longer.convert_tokens_to_ids("|||") == tokenizer.convert_tokens_to_ids("|||")
    inert_tokens = plain_text_tokenizer(longer).encode("a ||| b", add_special_tokens=False).ids
    assert longer.convert_tokens_to_ids("|||") not in inert_tokens


def test_a_tokenizer_of_another_kind_is_reported() -> None:
    pieces = [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)]
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)), unk_token="<unk>")
    with pytest.raises(UserError, match="byte-pair encoding"):
        learn_tokens(unigram, TEXTS, 10)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_means_of_those_that_they_stand_for(tiny_model_folder: str, tied: bool) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    before = [layer.weight.clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    extension, n = learn_tokens(tokenizer, TEXTS, 60), len(tokenizer)
    resize_embeddings(model, tokenizer, extension)
    after = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    assert (after[0] is after[1]) == tied
    for old, new in zip(before, after, strict=True):
        assert len(new) % 64 == 0
        assert torch.equal(new[:n], old)
        for place, ids in enumerate(extension.made_of.values()):
            torch.testing.assert_close(new[n + place], old[ids].mean(0))
    assert model.config.vocab_size == len(after[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    """The command's, and its texts beside it."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), "utf-8")
    arguments = ["--data", str(folder / "texts.jsonl"), "--tokens", "50", "--language", "zh-TW", "--dtype", "float32"]
    assert main(["extend", "--model", tiny_model_folder, "--out", str(folder / "model"), *arguments]) == 0
    return folder


def test_the_command_s_tokenizer_is_read_as_it_was_written(folder: Path, tiny_model_folder: str) -> None:
    before, after = load_tokenizer(tiny_model_folder), load_tokenizer(str(folder / "model"))
    assert special_ids(after) == special_ids(before)
    assert before.get_vocab().items() <= after.get_vocab().items()
    assert count_tokens(after, TEXTS) < 0.7 * count_tokens(before, TEXTS)
    end = json.loads((folder / "model" / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    assert before.convert_tokens_to_ids("<|im_end|>") in end


def test_the_command_s_model_is_trained_like_any_other_and_shows_both_stages(folder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    (tmp_path / "fit.yaml").write_text(
        f"model: {{pretrained: {folder / 'model'}}}\n"
        f"data: {{train: {corpus}, row_length: 64, batch_size: 4, language: zh-TW}}\n"
        f"trainer: {{accelerator: cpu, devices: 1, max_steps: 2, default_root_dir: {tmp_path / 'outputs'}}}\n"
        "mlflow: {enabled: false}\n"
    )
    assert main(["fit", "--config", str(tmp_path / "fit.yaml")]) == 0
    [model] = (tmp_path / "outputs").glob("*/*/model")
    origin = read_origin(str(model))
    assert origin is not None
    assert origin.arms == "Extended + InsCP"
    card = (model / "README.md").read_text("utf-8")
    assert "arXiv 2512.03989" in card
    assert "| new tokens | 50 |" in card
    assert load_tokenizer(str(model)).get_vocab() == load_tokenizer(str(folder / "model")).get_vocab()


def test_wrong_input_of_the_command_is_reported_in_one_line(
    folder: Path, tiny_model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = tmp_path / "once.jsonl"
    once.write_text('{"text": "xq"}', "utf-8")
    for arguments, told in (
        (["--data", str(folder / "texts.jsonl"), "--tokens", "0"], "tokens: must be at least 1, not 0"),
        (["--data", str(once)], "data: no pair of tokens occurs twice in it"),
        (["--data", str(tmp_path / "none.jsonl")], "none.jsonl: no such file"),
    ):
        assert main(["extend", "--model", tiny_model_folder, "--out", str(tmp_path / "out"), *arguments]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def adapted(folder: Path, into: Path) -> str:
    """The extended model with other weights, exported as a training leaves it."""
    model = load_model(str(folder / "model"), torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1
    origin = Origin(str(folder / "model"), "InsCP", "zh-TW", before=read_origin(str(folder / "model")))
    export_model(model, load_tokenizer(str(folder / "model")), into, origin, torch.float32)
    return str(into)


@pytest.mark.parametrize("method", [Average(0.25), ElChat(0.25)])
def test_merging_with_the_original_leaves_the_new_rows_alone(
    folder: Path, tmp_path: Path, tiny_model_folder: str, method
) -> None:
    model = adapted(folder, tmp_path / "adapted")
    ours, theirs = (dict(load_model(spec, torch.float32).named_parameters()) for spec in (model, tiny_model_folder))
    n = len(load_tokenizer(tiny_model_folder))
    for name, weight in merged(model, method, torch.float32).named_parameters():
        mean = 0.25 * ours[name][:n] + 0.75 * theirs[name][:n]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(weight[n:], ours[name][n:])
            special = sorted(special_ids(load_tokenizer(tiny_model_folder)))
            expected = mean
            if isinstance(method, ElChat):
                expected = ours[name][:n].clone()
                expected[special] = theirs[name][special]
            torch.testing.assert_close(weight[:n], expected)
        else:
            torch.testing.assert_close(weight, mean)


def test_what_is_left_of_the_original_is_measured_in_its_tokens(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "夜市？"}\n{"prompt": "Who?"}', "utf-8")
    task = Retention(
        prompts=str(tmp_path / "prompts.jsonl"), held_out={"zh": str(folder / "texts.jsonl")}, max_new_tokens=8
    )
    caching_model = CachingModel(
        LocalModel(str(folder / "model"), torch.float32, 256), tmp_path / "items", lambda *_: lambda: None
    )
    found = task.metrics(task.items(caching_model))
    # Nothing but rows was added: it differs by what the new rows take of the probabilities.
    model = load_model(str(folder / "model"), torch.float32)
    n = len(load_tokenizer(str(folder / "model"))) - 50
    assert 0 < found["kl"].value < 1
    assert len(model.get_input_embeddings().weight) > n
    assert found["held_out/zh/bits_per_byte"].value > 0


def test_rows_that_are_no_tokens_are_no_likelier_than_tokens(tiny_model_folder: str) -> None:
    """Also where the model's logits are low, as z-loss makes them, and a row at random would stand above all."""
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    with torch.no_grad():
        model.lm_head.weight.sub_(0.5 * model.lm_head.weight.std())
    resize_embeddings(model, tokenizer, extension := learn_tokens(tokenizer, TEXTS, 60))
    needed = len(tokenizer) + len(extension.made_of)
    assert len(model.lm_head.weight) > needed
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        mean = layer.weight[: len(tokenizer)].mean(0)
        torch.testing.assert_close(layer.weight[needed:], mean.expand(len(layer.weight) - needed, -1))
    with torch.no_grad():
        shares = model(torch.tensor([ids_of(tokenizer, ENGLISH)])).logits.softmax(-1)
    assert shares[..., needed:].max() <= shares.mean(-1).max() * 1.01


def test_new_tokens_are_raw_until_all_weights_are_trained() -> None:
    longer = Origin("org/model", EXTENDED, "fi")
    adapted, trained = (
        Origin("x", "InsCP", "fi", {"steps": 3}, adapter=of, before=longer) for of in ({"rank": 2}, None)
    )
    assert longer.has_untrained_tokens
    assert adapted.has_untrained_tokens
    assert not trained.has_untrained_tokens
    assert Origin("z", EXTENDED, "fi", before=trained).has_untrained_tokens
    assert not Origin("y", "InsCP", "fi", {"steps": 3}, adapter={"rank": 2}, before=trained).has_untrained_tokens
    assert not Origin("org/model", "InsCP", "fi", {"steps": 3}, adapter={"rank": 2}).has_untrained_tokens
