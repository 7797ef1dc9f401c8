"""What is read into a sharded model is all that its files hold."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

from inscp.model import weights
from inscp.model.precision import freeze_non_text_parts, trained_weights
from inscp.model.weights import materialise, read_weights
from inscp.pretrained import empty_model, load_model

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
CONFIGS: dict[str, PretrainedConfig] = {
    # A scalar a layer, in files that are laid out as the model is.
    "gemma4": Gemma4TextConfig(**SIZES, head_dim=8, vocab_size_per_layer_input=32, hidden_size_per_layer_input=8),
    # A correction of each expert's score, in files that hold every expert by itself.
    "deepseek": DeepseekV3Config(
        **SIZES,
        **LATENT,
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
    ),
}


@pytest.fixture
def one_rank(tmp_path: Path):  # type: ignore[no-untyped-def]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CONFIGS)
def test_buffers_that_files_hold_are_read_too(name: str, tmp_path: Path, one_rank: None) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    held = {key: buffer for key, buffer in model.named_buffers() if key in model.state_dict()}
    assert held
    for buffer in held.values():
        buffer.uniform_(1.0, 2.0)
    model.save_pretrained(tmp_path / "model")
    sharded = empty_model(str(tmp_path / "model"), torch.float32)
    materialise(sharded, torch.device("cpu"))
    read_weights(sharded, str(tmp_path / "model"))
    whole = load_model(str(tmp_path / "model"), torch.float32).state_dict()
    for key, tensor in sharded.state_dict().items():
        assert torch.equal(tensor, whole[key]), key
    assert all(torch.equal(whole[key], buffer) for key, buffer in held.items())


def test_a_model_whose_files_have_other_names_is_loaded_in_their_precision(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their configuration says of it."""
    AutoModelForCausalLM.from_config(CONFIGS["deepseek"]).bfloat16().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    loaded = []
    monkeypatch.setattr(weights, "load_model", lambda *given: loaded.append(load_model(*given)) or loaded[-1])
    sharded = empty_model(str(tmp_path / "model"), torch.float32)
    materialise(sharded, torch.device("cpu"))
    read_weights(sharded, str(tmp_path / "model"))
    assert [model.dtype for model in loaded] == [torch.bfloat16]
    whole = load_model(str(tmp_path / "model"), torch.float32)
    for key, parameter in sharded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, whole.get_parameter(key)), key


def test_what_no_text_passes_through_is_not_trained() -> None:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    text = SIZES | {"head_dim": 8}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=4))
    freeze_non_text_parts(model)
    kept = trained_weights(model)
    assert set(kept) == {name for name, _ in model.named_parameters() if "language_model" in name or "lm_head" in name}
    assert len(kept) < len(list(model.parameters()))


@pytest.mark.parametrize("sharded", [False, True])
def test_only_those_files_are_read_that_transformers_reads(tmp_path: Path, one_rank: None, sharded: bool) -> None:
    """Not another precision's beside them, a vendor's own, or those of an earlier saving."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path, max_shard_size="10KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    other = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    for name in ("model.fp16.safetensors", "consolidated.safetensors"):
        save_file(other, tmp_path / name)
    empty = empty_model(str(tmp_path), torch.float32)
    materialise(empty, torch.device("cpu"))
    read_weights(empty, str(tmp_path))
    for name, tensor in load_model(str(tmp_path), torch.float32).state_dict().items():
        torch.testing.assert_close(empty.state_dict()[name], tensor, msg=name)
