"""bf16 computes, fp32 is trained."""

from pathlib import Path

import pytest
import torch
from corpus import data_module, fit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from inscp.callbacks.checkpoints import Checkpoints
from inscp.model.checkpoint import read_tensors, stored_tensors
from inscp.model.precision import ComputeCopies, best_precision, trained_weights


def linear() -> tuple[nn.Linear, dict[str, nn.Parameter], ComputeCopies]:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    weights = trained_weights(model)
    return model, weights, ComputeCopies(model, torch.bfloat16)


def test_gradients_of_micro_batches_are_summed_in_fp32() -> None:
    model, weights, _ = linear()
    parts = []
    for number in range(20):
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(number)).bfloat16()
        parts.append(x.float().sum(0))  # the gradient of a sum, exact in bf16 for few rows
        model(x).sum().backward()
        assert model.weight.grad is None
    expected = torch.stack([part.bfloat16().float() for part in parts]).sum(0)
    gradient = weights["weight"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, expected.expand(4, 8))


def test_steps_too_small_for_bf16_are_not_lost() -> None:
    model, weights, copies = linear()
    before = model.weight.detach().clone()
    with torch.no_grad():
        for _ in range(64):
            weights["weight"] += before.float().abs() * 2**-12
            copies.refresh()
    assert (model.weight - before).float().abs().mean() > 0.01 * before.float().abs().mean()


def test_on_a_gpu_tied_weights_stay_tied_and_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, tie_word_embeddings=True, **sizes))
    weights = trained_weights(model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ComputeCopies(model, torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert trained_weights(model).keys() == weights.keys()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("padding", [None, 3])
def test_embeddings_have_the_gradients_of_both_their_uses(
    is_tied: bool, padding: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two micro-batches, as where a copy is looked up; only the rows are summed in fp32."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(num_hidden_layers=1, tie_word_embeddings=is_tied, pad_token_id=padding, **sizes)
    batches = [torch.randint(0, 9, (2, 30), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    found = []
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        weights = trained_weights(model)
        ComputeCopies(model, torch.bfloat16)
        for ids in batches:
            model(input_ids=ids, labels=ids).loss.backward()
        assert (model.model.embed_tokens.weight is weights["model.embed_tokens.weight"]) == (not has_gpu)
        found.append({name: weight.grad for name, weight in weights.items()})
        with torch.no_grad():
            assert not model.model.embed_tokens(batches[0]).requires_grad
    for name, gradient in found[0].items():
        assert gradient.dtype == torch.float32
        assert (gradient - found[1][name]).norm() < 0.02 * gradient.norm(), name


def test_frozen_weights_have_no_fp32_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    frozen = model[0].weight
    copies = ComputeCopies(model, torch.bfloat16)
    assert all(frozen is not weight for weight in copies._trained)
    assert (model[0].weight.requires_grad, model[0].weight.dtype) == (False, torch.bfloat16)
    assert next(iter(copies._trained)).dtype == torch.float32
    model(torch.randn(2, 4).bfloat16()).sum().backward()
    assert model[0].weight.grad is None


def test_a_bf16_training_follows_the_fp32_one_and_keeps_fp32_weights(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    def fitted(precision: str) -> dict[int, tuple[float, ...]]:
        saving = Checkpoints(str(tmp_path / precision / "kept"), every_n_steps=4)
        return fit(tmp_path, data_module(corpus, tiny_model_folder), saving, precision=precision).steps

    plain, mixed = fitted("32-true"), fitted("bf16-mixed")
    for step in range(1, 6):  # later Adam's steps of 0.01 make much of every small difference
        loss, rate, norm = plain[step]
        assert mixed[step] == (pytest.approx(loss, rel=5e-3), rate, pytest.approx(norm, rel=0.05))
    assert mixed[max(mixed)][0] == pytest.approx(plain[max(plain)][0], rel=0.2)
    checkpoint = sorted((tmp_path / "bf16-mixed" / "kept").glob("step-*"))[-1]
    tensors = {name: torch.zeros(size) for name, size in stored_tensors(checkpoint).items()}
    read_tensors(checkpoint, tensors)
    weights = [tensor for name, tensor in tensors.items() if name.startswith("model.")]
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights)


def test_resuming_in_another_precision_is_reported(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=1)
    fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=1), saving)
    with pytest.warns(UserWarning, match="began in 32-true and resumes in bf16-mixed"):
        fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=2), precision="bf16-mixed",
            resume=tmp_path / "kept" / "step-00000001")  # fmt: skip


@pytest.mark.parametrize(
    ("amx", "avx512", "intel", "expected"),
    [
        (True, True, True, "bf16-mixed"),
        (False, True, False, "bf16-mixed"),
        (False, True, True, "32-true"),  # where a product takes twice as long in bf16 as in fp32
        (False, False, False, "32-true"),
    ],
)
def test_a_processor_trains_in_the_number_format_that_it_multiplies_faster(
    amx: bool, avx512: bool, intel: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("inscp.model.precision._is_intel", lambda: intel)
    assert best_precision() == expected
