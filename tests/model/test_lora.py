"""Adapters are added where text passes, and what is exported computes as what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import data_module, fit, module
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    SiglipVisionConfig,
)

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.provenance import Provenance
from inscp.errors import UserError
from inscp.model.adapters import LoRA, with_adapters
from inscp.model.precision import freeze_non_text_parts

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
         "num_key_value_heads": 2, "num_hidden_layers": 2}  # fmt: skip


def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(num_local_experts=2, **SIZES)).eval()


def test_adapters_of_experts_are_merged_into_what_computes_the_same() -> None:
    adapter, ids = LoRA(rank=2), torch.arange(24)[None]
    adapted = mixtral()
    adapter.add_to(adapted)
    adapter.initialise(adapted, seed=1)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in trained.items():
            if ".lora_B." in name:
                weight.normal_(std=0.1)
        wanted = adapted.eval()(ids).logits
        found = with_adapters(mixtral(), adapter, trained)(ids).logits
    assert any("experts" in name for name in trained)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - mixtral()(ids).logits).abs().max() > 1e-3


def test_a_training_s_seed_draws_the_first_adapters(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    drawn = []
    for seed in (0, 0, 1):
        learner = module(tiny_model_folder, adapter=LoRA(rank=2))
        fit(tmp_path, data_module(corpus, tiny_model_folder, seed=seed, max_steps=1), learner=learner)
        first = next(weight for name, weight in learner.weights.items() if ".lora_A." in name)
        drawn.append(first.detach().clone())  # after a step of a rate at which signs and sizes stay
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0] - drawn[2]).abs().mean() > 0.01


def test_no_adapter_stands_where_no_text_passes() -> None:
    """In the tower of a model that also sees it would be trained by nothing, and DDP would wait for it."""
    vision = SiglipVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                image_size=28, patch_size=14)  # fmt: skip
    config = Gemma3Config(text_config={"head_dim": 8, **SIZES}, vision_config=vision.to_dict(), mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    freeze_non_text_parts(model)
    LoRA(rank=2).add_to(model)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 7
    assert all("language_model" in name and "vision" not in name for name in trained)


def test_a_checkpoint_s_adapters_count_as_they_did_when_they_were_trained(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    def fitted(adapter: LoRA, *callbacks: Checkpoints, resume: Path | None = None, **length: Any) -> dict[str, Any]:
        learner = module(tiny_model_folder, adapter=adapter)
        fit(tmp_path, data_module(corpus, tiny_model_folder, **length), *callbacks, learner=learner, resume=resume)
        return Provenance(tmp_path).origin(learner.trainer).training

    fitted(LoRA(rank=2), Checkpoints(str(tmp_path / "kept"), every_n_steps=3), max_steps=3)
    checkpoint = tmp_path / "kept" / "step-00000003"
    with pytest.raises(UserError, match=r"model\.adapter: the checkpoint was trained with"):
        fitted(LoRA(rank=2, alpha=256), resume=checkpoint)
    told = fitted(LoRA(rank=2, dropout=0.1), resume=checkpoint, epochs=2.0)
    assert "rank=2" in told["adapter"]
    assert told["passes"] == "2 passes over the training rows"
