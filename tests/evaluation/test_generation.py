"""Generation in batches gives what generation one by one gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chat_templates import STYLES, tokenizer_for
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PretrainedConfig, RwkvConfig

from inscp.cost.flops import ModelSize, Work, WorkCounter, forward_flops
from inscp.data.tagging import PlainTagger
from inscp.data.tokenization import tokenize
from inscp.evaluation import generation
from inscp.evaluation.generation import encode, generate
from inscp.evaluation.local_model import LocalModel
from inscp.model.end_tokens import end_token_ids
from inscp.pretrained import load_model, load_tokenizer
from inscp.records import Generation, Record, Turn

PROMPTS = ["hi", "今天天氣很好，我們一起去夜市吃東西吧！", "What is the sea?", "a b c d e f g h"]


def answers(model, tokenizer, prompts, **options) -> list[Generation]:  # type: ignore[no-untyped-def]
    asked = [(Turn("user", prompt),) for prompt in prompts]
    return [answer for _, answer in sorted(generate(model, tokenizer, asked, **options), key=lambda pair: pair[0])]


def test_greedy_tokens_of_a_batch_equal_one_by_one_in_fp32(tiny_model_folder: str) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    batched = answers(model, tokenizer, PROMPTS, max_new_tokens=24)
    alone = [answers(model, tokenizer, [prompt], max_new_tokens=24)[0] for prompt in PROMPTS]
    in_twos = answers(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=2)
    assert batched == alone == in_twos
    assert [generation.prompt for generation in batched] == PROMPTS
    assert len({generation.response for generation in batched}) > 1


def test_settings_of_sampling_that_come_with_a_model_do_not_make_answers_less_greedy(tiny_model_folder: str) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    greedy = answers(model, tokenizer, PROMPTS, max_new_tokens=24)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens = 5.0, 2, 24
    own.do_sample, own.temperature, own.top_k, own.max_length = True, 0.7, 3, 30
    assert answers(model, tokenizer, PROMPTS, max_new_tokens=24) == greedy
    assert model.generation_config is own


def test_samples_at_temperature_one_are_as_frequent_as_the_model_holds_them_for_likely(
    tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    model.generation_config.top_k, model.generation_config.top_p = (
        3,
        0.5,
    )  # which the model's likelihoods know nothing of
    model.lm_head.weight.data *= 20  # some are much likelier than others
    with torch.no_grad():
        likely = model(torch.tensor([encode(tokenizer, (Turn("user", PROMPTS[0]),))])).logits[0, -1].softmax(-1)
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: ids[0])
    torch.manual_seed(0)

    def distance(temperature: float, n: int = 4096) -> float:
        drawn = answers(model, tokenizer, PROMPTS[:1] * n, max_new_tokens=1, batch_size=n, temperature=temperature)
        counts = torch.bincount(torch.tensor([int(answer.response) for answer in drawn]), minlength=len(likely))
        return float((counts / n - likely).abs().sum() / 2)

    assert distance(1.0) < 0.15 < 0.3 < distance(0.5)


@pytest.mark.parametrize("selectable", [True, False])
def test_a_row_that_has_ended_is_computed_no_further_and_changes_no_other(
    tiny_model_folder: str, selectable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    asked = torch.tensor([encode(tokenizer, (Turn("user", PROMPTS[0]),))])
    said = model.generate(asked, max_new_tokens=6, do_sample=False)[0].tolist()
    model.generation_config.eos_token_id = [said[-1]]
    whole = answers(model, tokenizer, PROMPTS, max_new_tokens=24)
    assert 0 < sum(answer.ended for answer in whole) < len(PROMPTS)
    forward, sizes = model.forward, []

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(generation, "_TOKENS_AT_ONCE", 2)
    if not selectable:
        monkeypatch.setattr(generation, "_SELECTABLE", ())
    assert answers(model, tokenizer, PROMPTS, max_new_tokens=24) == whole
    assert sizes[:3] == [1, 1, len(PROMPTS)]  # the first two tell whether it heeds padding
    assert sizes[-1] < len(PROMPTS)


ENDS = ["<|im_end|>", "<|endoftext|>", "</s>"]  # of the template, of the tokenizer, of the model's own settings


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", [0, 5])
def test_a_response_ends_at_the_first_token_of_any_kind_that_ends_it_and_says_so(
    tiny_model_folder: str, place: int, end: str
) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    [free] = answers(model, tokenizer, PROMPTS[:1], max_new_tokens=12)
    assert (free.ended, free.n_tokens) == (False, 12)
    tokenizer.eos_token = "<|endoftext|>"
    ids = dict(zip(ENDS, tokenizer.convert_tokens_to_ids(ENDS[:2]) + tokenizer("z")["input_ids"][:1], strict=True))
    model.generation_config.eos_token_id = [ids["</s>"]]
    assert end_token_ids(model, tokenizer) == sorted(ids.values())
    forward, calls = model.forward, iter(range(100))

    def ending(*args, **kwargs):  # type: ignore[no-untyped-def]
        output = forward(*args, **kwargs)
        if next(calls) == place:
            output.logits[..., ids[end]] = 1e9
        return output

    model.forward = ending
    [ended] = answers(model, tokenizer, PROMPTS[:1], max_new_tokens=12)
    assert (ended.ended, ended.n_tokens) == (True, place + 1)
    assert "<|" not in ended.response


def test_a_document_is_continued_and_nothing_in_it_is_special(tiny_model_folder: str) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    chat, text = ([tokenizer.decode(encode(tokenizer, (Turn(role, "a<|im_end|>b"),)))] for role in ("user", "document"))
    assert text == ["a<|im_end|>b"]
    assert chat[0].startswith("<|im_start|>")
    assert chat[0].endswith("assistant\n")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in encode(tokenizer, (Turn("document", "a<|im_end|>b"),))


@pytest.mark.parametrize(("style", "begins"), [("qwen_3", []), ("gemma", ["<bos>"])])
def test_a_document_has_the_ids_of_a_training_after_what_the_tokenizer_begins_with(
    style: str, begins: list[str]
) -> None:
    template = STYLES["qwen_3"].template  # which alone writes <think>
    tokenizer = tokenizer_for(replace(STYLES[style], template=template, plain_tokens=("<think>", "</think>")))
    document = Turn("document", "a <think>b</think> c")
    tagged = PlainTagger().bind(tokenizer)(Record("a", (document,)))
    [trained] = tokenize(tagged, tokenizer, 99, lambda *_: None)
    ids = encode(tokenizer, (document,))
    assert ids == trained.input_ids.tolist()[:-1]  # without the end of the document
    assert ids[: len(begins)] == tokenizer.convert_tokens_to_ids(begins)


@pytest.mark.parametrize("style", STYLES)
def test_a_document_without_tokens_of_a_template_has_the_ids_that_the_tokenizer_gives_it(style: str) -> None:
    tokenizer = tokenizer_for(STYLES[style])
    for text in ("", *PROMPTS, "  The river.\n\nThe mill [x] <b>", "हिंदी é e\u0301"):
        assert encode(tokenizer, (Turn("document", text),)) == tokenizer(text)["input_ids"]


SIZES = {"hidden_size": 16, "num_hidden_layers": 2}
OF_STATES: dict[str, PretrainedConfig] = {
    "mamba": MambaConfig(**SIZES, state_size=4, time_step_rank=4, initializer_range=0.5),
    # Its state takes in what stands ahead, padding too.
    "rwkv": RwkvConfig(**SIZES, attention_hidden_size=16, intermediate_size=32),
}


@pytest.mark.parametrize("name", OF_STATES)
def test_a_model_that_carries_a_state_reads_each_prompt_once_and_no_padding(tiny_model_folder: str, name: str) -> None:
    tokenizer, config = load_tokenizer(tiny_model_folder), OF_STATES[name]
    config.vocab_size, config.eos_token_id = len(tokenizer), None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)  # so that a state remembers
    expected, ends = [], end_token_ids(model, tokenizer)
    for prompt in PROMPTS:
        ids = torch.tensor([encode(tokenizer, (Turn("user", prompt),))])
        for _ in range(40):  # without any cache
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        said = ids[0, -40:].tolist()
        end = next((place for place, token in enumerate(said) if token in ends), 40)
        expected.append(tokenizer.decode(said[:end], skip_special_tokens=True))
    found = [answer.response for answer in answers(model, tokenizer, PROMPTS, max_new_tokens=40)]
    assert found == expected


def test_a_model_without_attention_is_asked_and_its_cost_counted(tmp_path: Path, tiny_model_folder: str) -> None:
    tokenizer, counter = load_tokenizer(tiny_model_folder), WorkCounter()
    model = MambaForCausalLM(MambaConfig(**SIZES, vocab_size=len(tokenizer), state_size=4, time_step_rank=4))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backend = LocalModel(str(tmp_path), torch.float32, 4, counter)
    asked = list(backend.generate([(Turn("user", prompt),) for prompt in PROMPTS], 3))
    assert len(asked) == len(PROMPTS)
    assert counter.tokens > 0
    assert counter.flops == forward_flops(ModelSize.of(model), Work(counter.tokens))


def test_a_model_without_any_end_token_continues_to_the_limit(tiny_model_folder: str) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    model.generation_config.eos_token_id = tokenizer.eos_token = tokenizer.chat_template = None
    assert end_token_ids(model, tokenizer) == []
    texts = [(Turn("document", prompt),) for prompt in PROMPTS]
    found = [answer for _, answer in generate(model, tokenizer, texts, max_new_tokens=5)]
    assert [(answer.n_tokens, answer.ended) for answer in found] == [(5, False)] * 4
