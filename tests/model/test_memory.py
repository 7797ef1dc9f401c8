"""The memory estimate: each part is what it must be, and goes where the training's settings send it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import Strategy
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Gemma2Config, LlamaConfig, MixtralConfig

from inscp.errors import UserError
from inscp.model.adapters import LoRA
from inscp.model.distillation import Distillation
from inscp.model.memory import Layout, LiveTensors, MemoryEstimate, Shape, meta_model, step_memory
from inscp.model.module import InsCPModule
from inscp.model.strategies import DDP, FSDP2, OneDevice

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's config.json, and nothing else."""
    return write(tmp_path, LlamaConfig(architectures=["LlamaForCausalLM"], **SIZES))


def write(folder: Path, config: Any) -> Path:
    config.save_pretrained(folder)
    return folder


def estimate(
    folder: Path, strategy: Strategy | None = None, ranks: int = 1, micro_batches: int = 1, row_length: int = 128,
    dtype: torch.dtype = torch.bfloat16, **options: Any,
) -> MemoryEstimate:  # fmt: skip
    module = InsCPModule(str(folder), **options)
    layout = Layout(strategy or OneDevice(), ranks, 1, dtype)
    return step_memory(meta_model(module), module, layout, Shape(2, row_length, micro_batches))


def test_weights_and_states_are_four_and_eight_bytes_a_parameter(folder: Path) -> None:
    n_parameters = sum(p.numel() for p in meta_model(InsCPModule(str(folder))).parameters())
    found = estimate(folder, ema_decay=0.9)
    assert found.weights == pytest.approx(4 * n_parameters, rel=1e-3)
    assert found.optimizer == pytest.approx(8 * n_parameters, rel=1e-3)
    assert found.average == 4 * n_parameters


def test_activations_grow_no_faster_than_the_row(folder: Path) -> None:
    short, long = (estimate(folder, dtype=torch.float32, row_length=length).activations for length in (512, 2048))
    assert 3 * short < long <= 4 * short
    whole = estimate(folder, dtype=torch.float32, row_length=2048, attn_implementation="eager").activations
    assert whole > 3 * long  # where attention sees the whole row, its scores have the square of the length


def test_a_shard_of_two_holds_half_of_everything_but_activations(folder: Path) -> None:
    whole, half = (estimate(folder, FSDP2(), ranks, micro_batches=2, ema_decay=0.9) for ranks in (1, 2))
    for part in ("weights", "gradients", "optimizer", "average"):
        assert getattr(half, part) == pytest.approx(getattr(whole, part) / 2, rel=0.01)
    assert half.activations > 0.9 * whole.activations


def test_until_the_last_micro_batch_copies_keep_their_gradients_where_they_compute(folder: Path) -> None:
    """Though all else of the shards lies in CPU memory."""
    alone, copies = (
        estimate(folder, FSDP2(cpu_offload=True, replicate=copies), 4 * copies, micro_batches=2) for copies in (1, 2)
    )
    assert copies.activations - alone.activations == pytest.approx(copies.weights, rel=0.1)
    assert copies.total == pytest.approx(alone.total, rel=0.01)


def test_weights_that_stay_gathered_are_counted(folder: Path) -> None:
    freed, kept = (
        estimate(folder, FSDP2(reshard_after_forward=reshard), 4, row_length=16).activations
        for reshard in (True, False)
    )
    bf16_blocks = 2 * sum(p.numel() for p in meta_model(InsCPModule(str(folder))).model.layers.parameters())
    assert kept - freed > bf16_blocks / 2


@pytest.mark.parametrize("how", ["block", 2, "selective"])
def test_activation_checkpointing_lowers_activations_alone(folder: Path, how: Any) -> None:
    plain, saved = (estimate(folder, activation_checkpointing=value) for value in ("none", how))
    assert saved.activations < 0.85 * plain.activations
    assert (saved.weights, saved.optimizer) == (plain.weights, plain.optimizer)


@pytest.mark.parametrize("make", [OneDevice, FSDP2])
def test_lora_drops_gradients_and_states_of_frozen_weights(folder: Path, make: type[Strategy]) -> None:
    whole, adapted = (estimate(folder, make(), micro_batches=2, adapter=adapter) for adapter in (None, LoRA(rank=2)))
    assert adapted.weights == pytest.approx(0.54 * whole.weights, rel=0.01)  # bf16 ones alone, and the adapters
    assert adapted.gradients < 0.2 * whole.gradients
    assert adapted.optimizer < 0.2 * whole.optimizer


def test_a_teacher_is_one_more_model_in_the_precision_that_computes(folder: Path) -> None:
    alone, taught = (estimate(folder, distillation=how) for how in (None, Distillation()))
    assert taught.weights == pytest.approx(1.5 * alone.weights, rel=1e-2)  # two bytes beside four
    assert taught.optimizer == alone.optimizer
    assert alone.activations < taught.activations < 1.5 * alone.activations
    [half, taught_half] = (estimate(folder, FSDP2(), 2, distillation=how) for how in (None, Distillation()))
    assert taught_half.weights == pytest.approx(1.5 * half.weights, rel=1e-2)


def test_a_teacher_that_the_training_would_refuse_is_refused_by_the_estimate_too(tmp_path: Path) -> None:
    short = write(tmp_path, LlamaConfig(architectures=["LlamaForCausalLM"], max_position_embeddings=64, **SIZES))
    with pytest.raises(UserError, match="has a context length of 64 tokens, but rows have 128"):
        estimate(short, distillation=Distillation())


def test_what_lies_beneath_adapters_teaches_in_no_memory_of_its_own(folder: Path) -> None:
    alone, taught = (estimate(folder, adapter=LoRA(rank=2), distillation=how) for how in (None, Distillation()))
    assert (taught.weights, taught.optimizer) == (alone.weights, alone.optimizer)
    assert alone.activations < taught.activations < 1.5 * alone.activations


def test_with_accumulation_all_gradients_lie_beside_the_activations(folder: Path) -> None:
    one, two = (estimate(folder, micro_batches=count) for count in (1, 2))
    assert two.gradients == pytest.approx(two.weights, rel=1e-3)
    assert two.total > one.total + 0.5 * two.gradients
    assert estimate(folder, micro_batches=8) == two


def test_ddp_keeps_gradients_twice(folder: Path) -> None:
    alone, copies = (estimate(folder, strategy, micro_batches=2) for strategy in (OneDevice(), DDP()))
    assert copies.gradients == pytest.approx(2 * alone.gradients, rel=1e-6)


def test_every_block_adds_the_same(tmp_path: Path) -> None:
    totals = {}
    for count in (4, 6, 12):
        sizes = SIZES | {"num_hidden_layers": count}
        totals[count] = estimate(
            write(tmp_path / str(count), LlamaConfig(architectures=["LlamaForCausalLM"], **sizes))
        ).total
    assert totals[12] == pytest.approx(totals[4] + 4 * (totals[6] - totals[4]), rel=0.01)


def test_a_head_with_a_soft_cap_costs_all_logits(tmp_path: Path) -> None:
    sizes = SIZES | {"vocab_size": 8192}
    plain = estimate(
        write(tmp_path / "plain", LlamaConfig(architectures=["LlamaForCausalLM"], **sizes)), row_length=512
    )
    capped = Gemma2Config(architectures=["Gemma2ForCausalLM"], final_logit_softcapping=30.0, **sizes)
    found = estimate(write(tmp_path / "capped", capped), row_length=512, attn_implementation="eager")
    logits = 2 * 512 * 8192 * 4
    assert found.activations > plain.activations + logits


def test_a_mixture_of_experts_is_estimated_where_torch_can_fake_it_and_else_refused(tmp_path: Path) -> None:
    config = MixtralConfig(architectures=["MixtralForCausalLM"], num_local_experts=4, **SIZES)
    write(tmp_path, config)
    assert estimate(tmp_path, FSDP2(), 2).activations > 0
    assert estimate(tmp_path).activations > 0
    with pytest.raises(UserError, match="memory cannot be estimated"):
        estimate(tmp_path, DDP(), 2)  # torch has no fake grouped product in fp32, which autocast leaves it in


def test_the_peak_is_of_what_was_alive_at_once() -> None:
    with FakeTensorMode(), LiveTensors() as live:
        kept = torch.empty(1000)
        for _ in range(3):
            passing = torch.empty(500)
            view = passing[:10]
            del passing, view
        assert live.add([kept]) == 4000
    assert live.peak == 6000
