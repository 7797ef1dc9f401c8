"""Attention by document is attention behind a mask, with less work."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from inscp.model import attention, cpu_attention
from inscp.model.attention import Documents, attend_by_document
from inscp.model.blocks import compile_blocks
from inscp.model.cpu_attention import document_attention
from inscp.model.loss import NextTokenLoss
from inscp.records import IGNORED, PackedBatch

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("lengths", "window"), [((5, 1, 60, 62, 13, 99, 71, 71), 0), ((450, 9), 0), ((100, 200, 30), 50), ((600, 40), 50)]
)
def test_values_and_gradients_are_those_after_a_mask(
    lengths: tuple[int, ...], window: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (torch.randn(2, heads, tokens, 8).to(dtype).requires_grad_() for heads in (6, 2, 2))
    outer = torch.randn(2, tokens, 6, 8).to(dtype)
    output, _ = document_attention(q, k, v, Documents(lengths * 2, CPU).lengths, 0.3, window)
    found = [output, *torch.autograd.grad(output, (q, k, v), outer)]

    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    seen = (document[:, None] == document) & (distance >= 0) & (distance < (window or tokens))
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    keys, values = (x.repeat_interleave(3, 1) for x in (k, v))
    output = F.scaled_dot_product_attention(q, keys, values, seen, scale=0.3).transpose(1, 2)
    expected = [output, *torch.autograd.grad(output, (q, k, v), outer.double())]
    assert all(relative(ours, plain) < tolerance for ours, plain in zip(found, expected, strict=True))


def test_scores_far_above_what_an_exponential_holds_leave_finite_gradients() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 300, 8).mul(factor).requires_grad_() for factor in (20, 20, 1))
    output, _ = document_attention(q, k, v, Documents((300,), CPU).lengths, 1.0, 0)
    found = torch.autograd.grad(output.sum(), v)[0]
    scores = (q @ k.mT).detach()
    assert scores.max() > 100  # above fp32's largest exponential, 88
    shares = scores.masked_fill(torch.ones(300, 300, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    assert relative(found, shares.sum(-2)[..., None].expand_as(found).double()) < 1e-3


def test_gradients_of_long_documents_are_summed_in_more_than_bf16() -> None:
    """Sums in bf16 would be twice as far off."""
    torch.manual_seed(0)
    q, k, v, outer = (torch.randn(1, 1, 2048, 8).bfloat16().requires_grad_() for _ in range(4))
    output, _ = document_attention(q, k, v, Documents((2048,), CPU).lengths, 0.3, 0)
    found = torch.autograd.grad(output, (k, v), outer.transpose(1, 2))
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    expected = torch.autograd.grad(plain, (k, v), outer.double())
    assert all(relative(ours, theirs) < 0.005 for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("length", [40, 300])
def test_where_all_values_are_equal_bf16_leaves_scores_without_a_gradient(length: int) -> None:
    """Whichever token is looked at makes no difference; the mean that is subtracted must not be rounded to bf16."""
    torch.manual_seed(0)
    q, k, outer = (torch.randn(1, 1, length, 8).bfloat16().requires_grad_() for _ in range(3))
    v = torch.randn(8).bfloat16().expand_as(q)
    output, _ = document_attention(q, k, v.contiguous(), Documents((length,), CPU).lengths, 0.3, 0)
    found = torch.autograd.grad(output, (q, k), outer.transpose(1, 2))
    assert all(gradient.norm() < 1e-3 for gradient in found)


def test_the_operation_keeps_its_contract_with_compilers() -> None:
    q, k, v = (torch.randn(1, heads, 40, 8, requires_grad=True) for heads in (4, 2, 2))
    arguments = (q, k, v, Documents((13, 20, 7), CPU).lengths, 0.3, 0)
    torch.library.opcheck(torch.ops.inscp.document_attention.default, arguments)


def test_work_grows_with_the_squares_of_the_documents_lengths() -> None:
    lengths = torch.randint(20, 200, (400,), generator=torch.Generator().manual_seed(0))
    groups = cpu_attention._groups(lengths.numpy().tobytes())
    scores = sum(group.count * group.width**2 for group in groups)
    assert scores < 1.5 * (lengths**2).sum()
    assert scores < 0.01 * lengths.sum() ** 2
    tokens = torch.cat([group.tokens[group.filled] for group in groups])
    assert torch.equal(tokens.sort().values, torch.arange(int(lengths.sum())))


def test_however_varied_documents_are_few_widths_occur() -> None:
    lengths = torch.arange(1, 1025).numpy()
    widths = cpu_attention._padded(lengths)
    assert ((widths >= lengths) & (widths < lengths * 1.25 + 8)).all()
    assert len(set(widths)) == 24


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0, eos_token_id=1))


def mistral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5, pad_token_id=0, eos_token_id=1))


def deepseek() -> PreTrainedModel:
    """Multi-head latent attention: query heads of 24 numbers, value heads of 16."""
    torch.manual_seed(0)
    attention = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
               "first_k_dense_replace": 2, "moe_intermediate_size": 16}  # fmt: skip
    sizes = SIZES | {"num_key_value_heads": 4}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **attention, **experts, pad_token_id=0, eos_token_id=1))


def packed(*lengths: int) -> PackedBatch:
    ids = torch.randint(2, 64, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[0, torch.tensor(lengths).cumsum(0) - 1] = IGNORED
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return PackedBatch(ids, targets, positions, lengths, 1, sum(lengths))


def loss_and_gradients(loss: NextTokenLoss, *batches: PackedBatch) -> list[torch.Tensor]:
    loss.zero_grad()
    total = sum((loss(batch).total for batch in batches), torch.zeros(()))
    total.backward()
    return [total.detach(), *(p.grad.clone() for p in loss.parameters() if p.grad is not None)]


@pytest.mark.parametrize("make", [llama, mistral])
def test_a_packed_row_has_the_loss_and_gradients_of_its_documents_alone(make) -> None:  # type: ignore[no-untyped-def]
    loss = NextTokenLoss(make())
    assert loss.by_document
    row = packed(7, 3, 12)
    alone = [
        PackedBatch(row.input_ids[:, a:b], row.targets[:, a:b], row.position_ids[:, a:b], (b - a,), 1, b - a)
        for a, b in ((0, 7), (7, 10), (10, 22))
    ]
    together, apart = loss_and_gradients(loss, row), loss_and_gradients(loss, *alone)
    assert all(relative(ours, theirs.double()) < 1e-5 for ours, theirs in zip(together, apart, strict=True))


@pytest.mark.parametrize("lengths", [(9, 20), (400, 9)])
def test_values_narrower_than_queries_are_computed_exactly(lengths: tuple[int, ...]) -> None:
    row, plain = packed(*lengths), deepseek()
    plain.set_attn_implementation("eager")
    loss = NextTokenLoss(deepseek())
    assert loss.by_document
    ours, theirs = loss_and_gradients(loss, row), loss_and_gradients(NextTokenLoss(plain), row)
    assert all(relative(a, b.double()) < 1e-5 for a, b in zip(ours, theirs, strict=True))


def test_chunks_are_left_to_transformers() -> None:
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8, "attention_chunk_size": 8}
    torch.manual_seed(0)
    model = Llama4ForCausalLM(Llama4TextConfig(**SIZES, **experts, pad_token_id=0, eos_token_id=1, bos_token_id=1))
    assert not attend_by_document(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("widest", "bf16", "on_gpu"), [(256, True, True), (512, True, False), (100, True, False), (256, False, False)]
)
def test_a_gpu_attends_by_document_where_its_kernel_takes_every_layers_heads_and_it_multiplies_bf16(
    widest: int, bf16: bool, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = SIZES | {"num_hidden_layers": 6, "head_dim": 8, "global_head_dim": widest}
    config = Gemma4TextConfig(**sizes, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8)
    with torch.device("meta"):
        model = Gemma4ForCausalLM(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert attend_by_document(model) == on_gpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model.set_attn_implementation("sdpa")
    assert attend_by_document(model)


@pytest.mark.parametrize("make", [llama, mistral])
def test_generation_is_as_before(make) -> None:  # type: ignore[no-untyped-def]
    model = make().eval()
    prompts = {"input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 3]]),
               "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])}  # fmt: skip
    options = {"max_new_tokens": 9, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(**prompts, **options)
    assert attend_by_document(model)
    after = model.generate(**prompts, **options)
    assert torch.equal(before.sequences, after.sequences)
    torch.testing.assert_close(torch.stack(before.logits), torch.stack(after.logits))


def test_blocks_are_compiled_once_and_whole_for_all_documents(graphs: list[torch.fx.GraphModule]) -> None:
    plain, model = NextTokenLoss(llama()), llama()
    compile_blocks(model)
    compiled = NextTokenLoss(model)
    for batch in (packed(7, 3, 12), packed(22), packed(2, 2, 18)):
        torch.testing.assert_close(compiled(batch), plain(batch))
    assert len(graphs) == 1


def test_attention_that_transformers_gives_no_documents_stays_as_it_is() -> None:
    model = llama()
    model.set_attn_implementation("eager")
    assert not NextTokenLoss(model).by_document


def test_under_autocast_what_the_rotation_made_fp32_is_computed_in_its_dtype() -> None:
    q, k = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8)
    v = torch.randn(1, 2, 12, 8).bfloat16()
    documents = Documents((5, 7), CPU)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = attention._attention(torch.nn.Module(), q, k, v, None, documents=documents)
    plain, _ = attention._attention(torch.nn.Module(), q, k, v.float(), None, documents=documents)
    assert output.dtype == torch.bfloat16
    assert relative(output, plain.double()) < 1e-2
