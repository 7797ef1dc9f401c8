"""Merged weights are those of the formula, and the result is a model like any other that was made here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from changed_models import moved, quantized
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from inscp.__main__ import main
from inscp.data.special_tokens import special_ids
from inscp.errors import UserError
from inscp.model import weights
from inscp.model.merging import Average, ChatVector, ElChat, merged
from inscp.model.origin import read_origin
from inscp.pretrained import load_model, load_tokenizer


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> str:
    return moved(tiny_model_folder, tmp_path_factory.mktemp("adapted") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> str:
    return moved(tiny_model_folder, tmp_path_factory.mktemp("other") / "model", seed=2)


def tensors(spec: str) -> dict[str, torch.Tensor]:
    return load_file(Path(spec) / "model.safetensors")


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_an_average_lies_between_the_model_and_what_it_was_made_from(
    adapted: str, tiny_model_folder: str, weight: float
) -> None:
    result = dict(merged(adapted, Average(weight), torch.float32).named_parameters())
    ours, theirs = tensors(adapted), tensors(tiny_model_folder)
    for name, tensor in result.items():
        torch.testing.assert_close(tensor.data, weight * ours[name] + (1 - weight) * theirs[name], rtol=1e-6, atol=1e-7)
        if weight in (0, 1):
            assert torch.equal(tensor, (theirs, ours)[int(weight)][name])


def test_a_chat_vector_is_added_to_the_adapted_base_model(adapted: str, other: str, tiny_model_folder: str) -> None:
    result = merged(adapted, ChatVector(chat=other, scale=0.5), torch.float32)
    ours, chat, base = tensors(adapted), tensors(other), tensors(tiny_model_folder)
    for name, tensor in result.named_parameters():
        torch.testing.assert_close(tensor.data, ours[name] + 0.5 * (chat[name] - base[name]), rtol=1e-6, atol=1e-7)


def test_arithmetic_is_in_fp32_whatever_is_written(adapted: str, other: str) -> None:
    method = ChatVector(chat=other, scale=0.5)
    exact, written = (dict(merged(adapted, method, of).named_parameters()) for of in (torch.float32, torch.bfloat16))
    for name, tensor in written.items():
        assert torch.equal(tensor, exact[name].bfloat16())


def test_experts_are_loaded_in_their_files_precision_and_merged_in_fp32(
    tiny_model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files have other names than their parameters."""
    tokenizer = load_tokenizer(tiny_model_folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=len(tokenizer), num_local_experts=2, num_key_value_heads=2, **sizes)
    for name, seed in (("adapted", 1), ("original", 2)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    specs = [str(tmp_path / name) for name in ("adapted", "original")]
    ours, theirs = (dict(load_model(spec, torch.float32).named_parameters()) for spec in specs)
    loaded = []
    monkeypatch.setattr(weights, "load_model", lambda *given: loaded.append(load_model(*given)) or loaded[-1])
    result = merged(specs[0], Average(0.3, specs[1]), torch.float32)
    assert [model.dtype for model in loaded] == [torch.bfloat16, torch.bfloat16]
    for name, tensor in result.named_parameters():
        assert torch.equal(tensor, torch.lerp(theirs[name], ours[name], 0.3))


def test_elchat_takes_special_tokens_from_the_source_and_other_tokens_from_the_model(
    adapted: str, tiny_model_folder: str
) -> None:
    result = dict(merged(adapted, ElChat(weight=0.25), torch.float32).named_parameters())
    ours, theirs = tensors(adapted), tensors(tiny_model_folder)
    special = sorted(special_ids(load_tokenizer(adapted)))
    assert len(special) >= 3
    for name, tensor in result.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            is_special = torch.isin(torch.arange(len(tensor)), torch.tensor(special))
            assert torch.equal(tensor[is_special], theirs[name][is_special])
            assert torch.equal(tensor[~is_special], ours[name][~is_special])
        else:
            expected = 0.25 * ours[name] + 0.75 * theirs[name]
            torch.testing.assert_close(tensor.data, expected, rtol=1e-6, atol=1e-7)


def test_the_command_writes_a_model_that_says_what_was_merged(
    adapted: str, tiny_model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    (tmp_path / "merge.yaml").write_text("method: {class_path: Average, init_args: {weight: 0.3}}\n", "utf-8")
    assert main(["merge", "--config", str(tmp_path / "merge.yaml"), "--model", adapted, "--out", str(out)]) == 0
    assert f"model      {out}\n" in capsys.readouterr().out
    origin = read_origin(str(out))
    assert origin is not None
    assert (origin.arms, origin.original, origin.language) == ("InsCP + Average", tiny_model_folder, "fi")
    card = (out / "README.md").read_text("utf-8")
    assert "arXiv 2109.01903" in card
    assert f"{adapted}, {tiny_model_folder}" in card
    end = json.loads((out / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    assert load_tokenizer(str(out)).convert_tokens_to_ids("<|im_end|>") in end
    model = load_model(str(out), torch.float32)
    expected = merged(adapted, Average(0.3), torch.bfloat16)
    assert all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_tied_embeddings_stay_tied(tiny_model_folder: str, tmp_path: Path) -> None:
    first = moved(tiny_model_folder, tmp_path / "first", tied=True)
    second = moved(tiny_model_folder, tmp_path / "second", seed=2, tied=True)
    result = merged(second, ElChat(source=first), torch.float32)
    assert result.lm_head.weight is result.model.embed_tokens.weight
    end = load_tokenizer(first).convert_tokens_to_ids("<|im_end|>")
    assert torch.equal(result.lm_head.weight[end], tensors(first)["model.embed_tokens.weight"][end])


def test_models_that_do_not_fit_together_are_reported_in_one_line(
    adapted: str, tiny_model_folder: str, tmp_path: Path
) -> None:
    smaller = load_model(tiny_model_folder, torch.float32)
    smaller.config.num_hidden_layers = 1
    del smaller.model.layers[1]
    tokenizer = load_tokenizer(tiny_model_folder)
    smaller.save_pretrained(tmp_path / "smaller")
    tokenizer.save_pretrained(tmp_path / "smaller")
    with pytest.raises(UserError, match=r"smaller: its model\.layers\.1\.\S+ is missing"):
        merged(adapted, Average(original=str(tmp_path / "smaller")), torch.float32)
    shutil.copytree(tiny_model_folder, tmp_path / "alien")
    tokenizer.add_tokens(["夜市夜市"])
    tokenizer.save_pretrained(tmp_path / "alien")
    with pytest.raises(UserError, match=r"alien: its vocabulary differs from that of .*夜市夜市"):
        merged(adapted, Average(original=str(tmp_path / "alien")), torch.float32)
    with pytest.raises(UserError, match="does not record its original model"):
        merged(tiny_model_folder, Average(), torch.float32)


def test_nothing_is_written_over(adapted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["merge", "--model", adapted, "--method", "Average", "--out", str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'mine'}: it already exists")


@pytest.mark.parametrize("place", [0, 1])
def test_quantized_models_are_not_merged(place: int, adapted: str, tiny_model_folder: str, tmp_path: Path) -> None:
    models = [adapted, tiny_model_folder]
    models[place] = quantized(models[place], tmp_path / "quantized")
    with pytest.raises(UserError, match=r"quantized: its weights are quantized \(fp8\)"):
        merged(models[0], Average(original=models[1]), torch.float32)


def test_a_model_whose_output_layer_is_its_embeddings_is_merged_with_such_alone(
    adapted: str, tmp_path: Path, tiny_model_folder: str
) -> None:
    tied = moved(tiny_model_folder, tmp_path / "tied", seed=3, tied=True)
    for one, two in ((adapted, tied), (tied, adapted)):
        with pytest.raises(UserError, match=r"its output layer is .*its embeddings, unlike that of"):
            merged(one, Average(0.5, two), torch.float32)


def test_elchat_takes_back_what_a_template_writes_though_nobody_calls_it_special(
    adapted: str, tmp_path: Path, tiny_model_folder: str
) -> None:
    plain = shutil.copytree(tiny_model_folder, tmp_path / "plain")
    file = Path(plain) / "tokenizer.json"
    state = json.loads(file.read_text("utf-8"))
    for token in state["added_tokens"]:
        token["special"] = False
    file.write_text(json.dumps(state), "utf-8")
    tokenizer = load_tokenizer(str(plain))
    names = ["<|im_start|>", "<|im_end|>"]
    result = merged(adapted, ElChat(source=str(plain)), torch.float32)
    rows = result.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(names)]
    source = load_model(tiny_model_folder, torch.float32).get_input_embeddings().weight
    assert torch.equal(rows, source[tokenizer.convert_tokens_to_ids(names)])
