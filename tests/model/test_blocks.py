"""What is sharded, compiled and checkpointed by itself are the blocks of the text model."""

from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, LlamaConfig, ModernBertDecoderConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from inscp.model.blocks import ActivationCheckpointing, blocks, checkpoint_activations, compile_blocks
from inscp.model.loss import NextTokenLoss
from inscp.model.precision import freeze_non_text_parts
from inscp.records import PackedBatch

_TEXT = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}


def test_blocks_are_the_text_model_s_though_its_eyes_are_deeper() -> None:
    text = _TEXT | {"num_key_value_heads": 1, "head_dim": 8}
    vision = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert [type(block) for block in blocks(model)] == [Gemma3DecoderLayer] * 2


def test_blocks_are_no_experts_of_which_there_may_be_more() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**_TEXT))
        for layer in model.model.layers:
            layer.mlp.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    assert [type(block) for block in blocks(model)] == [LlamaDecoderLayer] * 2


def test_all_is_trained_of_a_model_that_calls_its_output_head_the_decoder() -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    model = AutoModelForCausalLM.from_config(ModernBertDecoderConfig(**_TEXT, **ids))
    freeze_non_text_parts(model)
    assert len(blocks(model)) == 2
    assert all(weight.requires_grad for weight in model.parameters())


def test_blocks_of_several_kinds_are_compiled_for_all_that_a_training_asks(graphs: list[torch.fx.GraphModule]) -> None:
    """In validation, in training, and for other lengths; at torch's limit, of 8, the backend here would raise."""
    kinds = 3
    config = Gemma3TextConfig(**_TEXT | {"num_hidden_layers": kinds}, num_key_value_heads=1, head_dim=8)
    model = AutoModelForCausalLM.from_config(config)
    for window, block in enumerate(blocks(model), 4):
        block.self_attn.sliding_window = window
    compile_blocks(model)
    loss = NextTokenLoss(model)
    for is_training in (False, True):
        loss.train(is_training)
        for rows in (1, 2, 3):
            ids = torch.arange(12).repeat(rows, 1)
            with torch.set_grad_enabled(is_training):
                loss(PackedBatch(ids, ids, ids, (12,) * rows, 1, 12))
    assert len(graphs) > 8


@pytest.mark.parametrize(("how", "kept"), [("none", 2), ("selective", 1)])
def test_compiled_blocks_recompute_the_mlp_s_product_but_no_attention(
    monkeypatch: pytest.MonkeyPatch, how: ActivationCheckpointing, kept: int
) -> None:
    """Of the wide activations both factors are kept, or one; never their product, which a matmul uses."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    width, tokens = 40, 12
    model = AutoModelForCausalLM.from_config(LlamaConfig(**_TEXT | {"intermediate_size": width}))
    checkpoint_activations(model, how)
    compile_blocks(model)
    ids = torch.arange(tokens)[None]
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        total = NextTokenLoss(model.train())(PackedBatch(ids, ids, ids, (5, 7), 1, tokens)).total
    assert sum(shape.numel() == tokens * width for shape in saved) == kept * 2
    with torch.profiler.profile() as profile:
        total.backward()
    names = {event.key for event in profile.key_averages()}
    assert "inscp::document_attention_backward" in names
    assert "inscp::document_attention" not in names
