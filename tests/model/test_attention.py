"""Attention by document is attention behind a mask, with less work."""

from collections.abc import Iterator

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

from inscp.model import attention
from inscp.model.attention import Documents, attend_by_document
from inscp.model.blocks import compile_blocks
from inscp.model.cpu_attention import document_attention
from inscp.model.loss import NextTokenLoss
from inscp.model.native import compiled
from inscp.records import IGNORED, PackedBatch

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("lengths", "window", "size"),
    [
        ((5, 1, 60, 62, 13, 99, 71, 71), 0, 8),
        ((450, 9), 0, 40),
        ((100, 200, 30), 50, 64),
        ((600, 40), 50, 8),
        ((33, 70), 2, 20),
        ((40, 3), 1000, 256),
        ((20, 45), 0, 1),
    ],
)
def test_values_and_gradients_are_those_after_a_mask(
    lengths: tuple[int, ...], window: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (torch.randn(2, heads, tokens, size).to(dtype).requires_grad_() for heads in (6, 2, 2))
    outer = torch.randn(2, tokens, 6, size).to(dtype)
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
    output, _ = document_attention(q, k, v, Documents((length,), CPU).lengths, 0.3, 0)
    found = torch.autograd.grad(output, (q, k), outer.transpose(1, 2))
    assert all(gradient.norm() < 1e-3 for gradient in found)


def test_the_operation_keeps_its_contract_with_compilers() -> None:
    q, k, v = (torch.randn(1, heads, 40, 8, requires_grad=True) for heads in (4, 2, 2))
    arguments = (q, k, v, Documents((13, 20, 7), CPU).lengths, 0.3, 0)
    torch.library.opcheck(torch.ops.inscp.document_attention.default, arguments)


def test_a_token_that_sees_only_itself_has_its_own_value() -> None:
    q, k, v = (torch.randn(1, 2, 70, 8, requires_grad=True) for _ in range(3))
    output, _ = document_attention(q, k, v, Documents((70,), CPU).lengths, 50.0, 1)
    assert torch.equal(output.transpose(1, 2), v)
    q_grad, k_grad, v_grad = torch.autograd.grad(output.sum(), (q, k, v))
    assert max(q_grad.abs().max(), k_grad.abs().max()) < 1e-3
    assert torch.equal(v_grad, torch.ones_like(v))


def test_tensors_that_do_not_fit_together_are_refused_instead_of_read() -> None:
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    lengths = Documents((30,), CPU).lengths
    for wrong in ((q, k, v.bfloat16()), (q, k, v[..., :4]), (q, k[:, :, :20], v), (q.half(), k.half(), v.half())):
        with pytest.raises(ValueError, match="do not fit"):
            document_attention(*wrong, lengths, 1.0, 0)
    with pytest.raises(ValueError, match="do not fit"):
        document_attention(q, k, v, Documents((20,), CPU).lengths, 1.0, 0)


def results(lengths: tuple[int, ...], window: int = 0, spoiled: slice = slice(0)) -> list[torch.Tensor]:
    """Output and gradients, tokens first, of random vectors; those at the `spoiled` positions are not numbers."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, sum(lengths), 20) for heads in (4, 2, 2))
    for x in (q, k, v):
        x[:, :, spoiled] = torch.nan
        x.requires_grad_()
    output, _ = document_attention(q, k, v, Documents(lengths, CPU).lengths, 0.3, window)
    return [output[0], *(x[0].mT.transpose(0, 2) for x in torch.autograd.grad(output.sum(), (q, k, v)))]


def test_no_work_is_done_across_documents() -> None:
    """A product with what is not a number would not be one either, whatever the mask."""
    lengths = (40, 70, 9)
    whole = results(lengths)
    for spoiled, kept in (
        (slice(0, 40), slice(40, None)),
        (slice(40, 110), slice(0, 40)),
        (slice(110, None), slice(110)),
    ):
        assert all(torch.equal(x[kept], y[kept]) for x, y in zip(results(lengths, 0, spoiled), whole, strict=True))


def test_no_work_is_done_on_whole_blocks_of_later_tokens_or_of_those_outside_the_window() -> None:
    output, query_gradient, *_ = results((200,), 0, slice(64, None))
    assert output[:64].isfinite().all()
    assert query_gradient[:64].isfinite().all()
    output, query_gradient, *_ = results((200,), 30, slice(32))
    assert output[96:].isfinite().all()
    assert query_gradient[96:].isfinite().all()


def test_what_is_not_a_number_stays_none_instead_of_going_unnoticed() -> None:
    assert all(x[50:].isnan().all() for x in results((70,), 0, slice(50, None)))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    alone = results((300, 9, 80, 41))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = results((300, 9, 80, 41))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU, where what compiles the kernel may be changed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compiled.cache_clear()
    yield
    compiled.cache_clear()


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX2"])
def test_a_cpu_with_shorter_vectors_computes_the_same(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results((70, 9), 50)
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        instructions = "DEFAULT"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    compiled.cache_clear()
    assert all(relative(x, y.double()) < 1e-6 for x, y in zip(results((70, 9), 50), expected, strict=True))


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("CXX", "no-such-compiler", "No such file"),
        ("CXX", "false", "exit status 1"),
        ("CXX", "c++ -DBLOCK=", "error: "),
        ("INSCP_CACHE", __file__, "Not a directory"),
    ],
)
def test_without_a_compiler_a_warning_says_so_and_rows_are_attended_behind_a_mask(
    variable: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = packed(7, 3, 12)
    expected = loss_and_gradients(NextTokenLoss(llama()), row)
    monkeypatch.setenv(variable, value)
    compiled.cache_clear()
    with pytest.warns(UserWarning, match=rf"it cannot make a library .*{why}.*Install a C\+\+ compiler"):
        loss = NextTokenLoss(llama())
    assert not loss.by_document
    found = loss_and_gradients(loss, row)
    assert all(relative(x, y.double()) < 1e-5 for x, y in zip(found, expected, strict=True))


@pytest.mark.usefixtures("compiled_anew")
def test_an_empty_name_of_a_compiler_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    assert NextTokenLoss(llama()).by_document


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
    fast = NextTokenLoss(model)
    for batch in (packed(7, 3, 12), packed(22), packed(2, 2, 18)):
        torch.testing.assert_close(fast(batch), plain(batch))
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
