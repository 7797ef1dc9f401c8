"""What is sharded, compiled and checkpointed by itself are the blocks of the text model."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, LlamaConfig, ModernBertDecoderConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from inscp.model.blocks import blocks, compile_blocks
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
    compile_blocks(model, selective=False)
    loss = NextTokenLoss(model)
    for is_training in (False, True):
        loss.train(is_training)
        for rows in (1, 2, 3):
            ids = torch.arange(12).repeat(rows, 1)
            with torch.set_grad_enabled(is_training):
                loss(PackedBatch(ids, ids, ids, (12,) * rows, 1, 12))
    assert len(graphs) > 8
