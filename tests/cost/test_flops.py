"""FLOPs by formula are those that torch counts, and projections are the same formula."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from inscp.cost.devices import find_device
from inscp.cost.flops import ModelSize, Work, WorkCounter, forward_flops, recomputed_share, training_flops
from inscp.evaluation.generation import generate
from inscp.pretrained import load_tokenizer
from inscp.records import Turn

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SEEING = Gemma3Config(
    text_config=SIZES | {"head_dim": 8},
    vision_config={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    mm_tokens_per_image=4,
)
IDS = torch.arange(24).reshape(2, 12)
EVERY = Work(24, 2 * 12 * 12)
"""Eager attention computes every pair, and torch counts every pair."""


def by_torch(model: PreTrainedModel) -> int:
    """The FLOPs of a forward pass that torch counts."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        model(IDS)
    return counted.get_total_flops()


def llama(tied: bool = False) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied, attn_implementation="eager"))


@pytest.mark.parametrize("tied", [False, True])
def test_forward_and_backward_are_what_torch_counts(tied: bool) -> None:
    model = llama(tied)
    size = ModelSize.of(model)
    with FlopCounterMode(display=False) as counted:
        loss = model(IDS).logits.sum()
    assert forward_flops(size, EVERY) == pytest.approx(counted.get_total_flops(), rel=0.01)  # norms are not products
    forward = counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        loss.backward()
    both = forward + counted.get_total_flops()
    assert training_flops(size, EVERY) == pytest.approx(both, rel=0.01)
    assert training_flops(size, EVERY, recomputed_share("block")) == pytest.approx(both + forward, rel=0.01)
    every = sum(weight.numel() for weight in model.parameters())
    assert size.multiplied == every - (0 if tied else 300 * 32)


def test_frozen_weights_have_no_gradients_of_their_own() -> None:
    model = llama().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.requires_grad_("layernorm" in name)
    with FlopCounterMode(display=False) as counted:
        model(IDS).logits.sum().backward()
    assert training_flops(ModelSize.of(model), EVERY) == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_of_experts_those_count_that_are_chosen() -> None:
    dense, experts = llama(), MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2))
    mlp, routers = 3 * 3 * 32 * 64, 3 * 8 * 32
    assert ModelSize.of(experts).multiplied - ModelSize.of(dense).multiplied == mlp + routers


def test_no_text_passes_through_a_tower_for_images() -> None:
    model = Gemma3ForConditionalGeneration(SEEING)
    assert forward_flops(ModelSize.of(model), EVERY) == pytest.approx(by_torch(model), rel=0.02)


def test_layers_with_heads_of_their_own_width_are_counted_one_by_one() -> None:
    sizes = SIZES | {"num_hidden_layers": 6, "head_dim": 8, "global_head_dim": 16}
    config = Gemma4TextConfig(**sizes, vocab_size_per_layer_input=300, hidden_size_per_layer_input=8)
    assert config.layer_types.count("full_attention") == 1
    assert ModelSize.of(Gemma4ForCausalLM(config)).attention_width == 4 * (5 * 8 + 16)


def test_narrow_values_are_counted_as_torch_counts_them() -> None:
    attention = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    config = DeepseekV3Config(**SIZES | {"num_key_value_heads": 4}, **attention, first_k_dense_replace=3)
    model = DeepseekV3ForCausalLM(config)
    assert forward_flops(ModelSize.of(model), EVERY) == pytest.approx(by_torch(model), rel=0.01)


def test_what_is_asked_is_counted_token_by_token(tiny_model_folder: str) -> None:
    tokenizer, counter = load_tokenizer(tiny_model_folder), WorkCounter()
    model = LlamaForCausalLM.from_pretrained(tiny_model_folder).eval()
    counter.watch(model)
    [(_, answer)] = generate(model, tokenizer, [(Turn("user", "Hello?"),)], 5)
    prompt = counter.tokens - (answer.n_tokens - 1)
    assert prompt > 5
    assert counter.flops == forward_flops(ModelSize.of(model), Work.of((counter.tokens,)))
    asked = counter.flops
    model(torch.ones(2, 3, dtype=torch.long), position_ids=torch.arange(3)[None])  # for both rows
    assert counter.flops - asked == forward_flops(ModelSize.of(model), Work.of((3, 3)))
    assert counter.tokens == prompt + answer.n_tokens - 1 + 6


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
        OPTConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
                  word_embed_proj_dim=16),
        SEEING,
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_it_is_counted_however_a_model_calls_its_body(config: PretrainedConfig) -> None:
    model, counter = AutoModelForCausalLM.from_config(config).eval(), WorkCounter()
    counter.watch(model)
    model.generate(torch.ones(2, 5, dtype=torch.long), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert counter.tokens == 2 * (5 + 3)


def test_documents_attend_to_themselves() -> None:
    assert Work.of((3, 2)) == Work(5, 1 + 2 + 3 + 1 + 2)


def test_a_projection_is_the_formula() -> None:
    device = find_device("NVIDIA H100 80GB HBM3")
    assert device is not None
    assert device.watts == 700
    assert find_device("NVIDIA H100 PCIe").watts == 350  # type: ignore[union-attr]
    assert find_device("NVIDIA A100 80GB PCIe").watts == 300  # type: ignore[union-attr]
    assert find_device("NVIDIA T4") is None
    assert device.hours(4.8e18) == pytest.approx(4.8e18 / (989e12 * 0.4) / 3600)
