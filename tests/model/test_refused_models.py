"""Models that packed rows or quantized weights would spoil are refused before the first step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from changed_models import quantized
from corpus import data_module, fit, module, trainer
from torch import nn
from transformers import Lfm2Config, Lfm2ForCausalLM

from inscp.errors import UserError
from inscp.pretrained import load_tokenizer


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> str:
    """A convolution and an attention layer, with the tokenizer of the tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny-lfm2"
    shutil.copytree(tiny_model_folder, folder)
    base = json.loads((folder / "config.json").read_text("utf-8"))
    sizes = {name: base[name] for name in ("vocab_size", "eos_token_id", "pad_token_id")}
    config = Lfm2Config(**sizes, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, layer_types=["conv", "full_attention"],
                        block_auto_adjust_ff_dim=False, bos_token_id=None)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Lfm2ForCausalLM(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("entry", ["fit", "validate"])
def test_layers_that_carry_a_state_from_document_to_document(
    entry: str, tmp_path: Path, corpus: Path, leaking: str
) -> None:
    run = getattr(trainer(tmp_path), entry)
    with pytest.raises(UserError, match="tiny-lfm2: its layers let a document in a packed row see the previous one"):
        run(module(leaking), datamodule=data_module(corpus, leaking, validation={"held-out": str(corpus)}))


def test_quantized_weights(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    with pytest.raises(UserError, match=r"its weights are quantized \(fp8\)"):
        fit(tmp_path, data_module(corpus, quantized(tiny_model_folder, tmp_path / "quantized")))


def test_a_tokenizer_with_a_token_that_the_model_has_no_row_for(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    """As where a padding token was added to it and the embeddings were left as they were."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "padded"))
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"padded: its tokenizer's \[PAD\] has no row in its embeddings"):
        fit(tmp_path, data_module(corpus, str(folder)))
