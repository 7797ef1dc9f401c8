"""A model that lets packed documents see each other is found out before it is trained or judged in packed rows."""

import copy
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from inscp.errors import UserError
from inscp.evaluation import local_model
from inscp.evaluation.local_model import LocalModel
from inscp.model.blocks import compile_blocks
from inscp.model.isolation import isolates_documents, longest_isolated, require_isolation
from inscp.model.likelihood import summed_nlls
from inscp.model.loss import NextTokenLoss
from inscp.records import PackedBatch, TokenSequence

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
APART: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "sdpa", {}),
    ("llama", "eager", {}),
    ("qwen2", "sdpa", {}),
    ("gemma2", "eager", {"head_dim": 8}),
    ("gemma3_text", "sdpa", {"head_dim": 8, "sliding_window": 8}),
    ("llama4_text", "sdpa", {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8}),
    ("nemotron", "eager", {}),
]
TOGETHER: list[tuple[str, str, dict[str, Any]]] = [
    ("lfm2", "sdpa", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    ("bloom", "eager", {}),
    ("nemotron", "sdpa", {}),
    ("gpt_oss", "eager", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
]


def model(kind: str, attention: str, options: dict[str, Any]) -> PreTrainedModel:
    """Random, and as far from uniform as a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **SIZES | options), attn_implementation=attention
        )
        for weight in made.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
    return made.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "attention", "options"), APART)
def test_models_that_keep_documents_apart_pass(
    kind: str, attention: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    require_isolation(NextTokenLoss(model(kind, attention, options).to(dtype)), kind, CPU, row_length=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "attention", "options"), TOGETHER)
def test_models_that_do_not_are_refused_by_name(
    kind: str, attention: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    fix = "Set model.attn_implementation to eager" if kind == "nemotron" else "Use a model with plain attention"
    with pytest.raises(UserError, match=rf"^org/{kind}: its layers let .* see the previous one\. .*{fix}"):
        require_isolation(NextTokenLoss(model(kind, attention, options).to(dtype)), f"org/{kind}", CPU, row_length=64)


def long_rope(**factors: float) -> dict[str, Any]:
    return {"rope_type": "longrope", "rope_theta": 1e4, **{name: [factor] * 4 for name, factor in factors.items()}}


def test_a_document_longer_than_those_of_pre_training_changes_no_other() -> None:
    options = {"original_max_position_embeddings": 32, "rope_parameters": long_rope(short_factor=1.0, long_factor=8.0)}
    loss = NextTokenLoss(model("phi3", "sdpa", options | {"max_position_embeddings": 512}))
    short, fitting, longer = (
        TokenSequence("s", ids := np.random.default_rng(n).integers(3, 64, n).astype(np.int32), ids)
        for n in (20, 32, 33)
    )
    alone, beside, changed = (summed_nlls(loss, pieces)[0] for pieces in ([short], [short, fitting], [short, longer]))
    assert alone == pytest.approx(beside, rel=1e-5)
    assert alone != pytest.approx(changed, rel=1e-2), "this is why"
    require_isolation(loss, "org/phi3", CPU, row_length=32)
    with pytest.raises(
        UserError, match=r"^org/phi3: a document of more than 32 tokens .* Set data\.row_length to 32\."
    ):
        require_isolation(loss, "org/phi3", CPU, row_length=33)


def test_the_angles_of_some_layers_alone_may_depend_on_the_length() -> None:
    rope = {"full_attention": long_rope(short_factor=1.0, long_factor=8.0) | {"original_max_position_embeddings": 16},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    assert longest_isolated(Gemma3TextConfig(rope_parameters=rope)) == 16
    assert longest_isolated(Gemma3TextConfig()) == sys.maxsize


def test_asking_leaves_the_model_as_it_was() -> None:
    loss = NextTokenLoss(model("llama", "sdpa", {"attention_dropout": 0.5}).train())
    before, random = copy.deepcopy(loss.state_dict()), torch.get_rng_state()
    assert isolates_documents(loss, CPU)
    assert all(module.training for module in loss.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in loss.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_attention_with_dropout_is_computed_over_rows_and_keeps_documents_apart() -> None:
    """As GPT-2 has it; the kernels by document know none."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 64}
    others = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.5}
    loss = NextTokenLoss(GPT2LMHeadModel(GPT2Config(**sizes, **others)).train())
    ids = torch.arange(12)[None]
    batch = PackedBatch(ids, ids, ids, (12,), 1, 12)
    assert not loss.by_document
    assert loss(batch).total != loss(batch).total
    assert isolates_documents(loss, CPU)


def test_blocks_are_compiled_for_other_rows_than_the_question(graphs: list[torch.fx.GraphModule]) -> None:
    llama = model("llama", "sdpa", {})
    compile_blocks(llama)
    loss = NextTokenLoss(llama)
    assert isolates_documents(loss, CPU)
    assert not graphs
    ids = torch.arange(12)[None]
    loss(PackedBatch(ids, ids, ids, (12,), 1, 12))
    assert graphs


def sequences() -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    return [TokenSequence("s", ids := generator.integers(3, 64, 20).astype(np.int32), ids) for _ in range(3)]


@pytest.mark.parametrize(("kind", "attention", "options", "passes"), [(*APART[0], 1), (*TOGETHER[0], 3)])
def test_likelihoods_of_a_model_that_does_not_are_computed_one_by_one(
    kind: str, attention: str, options: dict[str, Any], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = NextTokenLoss(model(kind, attention, options))
    alone = [float(summed_nlls(loss, [sequence])[0]) for sequence in sequences()]
    monkeypatch.setattr(local_model, "scoring_model", lambda *_: loss)
    monkeypatch.setattr(local_model, "longest_input", lambda _: 512)
    rows: list[PackedBatch] = []
    backend = LocalModel("name", torch.float32, 1)
    assert backend._batch_tokens
    loss.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0]))
    assert [nll for _, nll in sorted(backend.nlls(sequences()))] == pytest.approx(alone, rel=1e-5)
    assert len(rows) == passes


def test_a_likelihood_that_is_infinite_spoils_no_other() -> None:
    class Infinite(NextTokenLoss):
        def forward(self, batch: PackedBatch, per_target: bool = False) -> torch.Tensor:  # type: ignore[override]
            nlls = torch.ones(3 * 19)
            nlls[25] = torch.inf
            return nlls

    loss = Infinite(model(*TOGETHER[0]))
    assert summed_nlls(loss, sequences()).tolist() == [19, math.inf, 19]
