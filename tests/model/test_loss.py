"""The chunked loss is the plain one, without its memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inscp.model import loss
from inscp.model.loss import NextTokenLoss, Predictions, has_linear_head, linear_losses, linear_nlls
from inscp.records import IGNORED, PackedBatch

TOKENS, HIDDEN, VOCABULARY = 70, 16, 300


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 32)  # three chunks, the last one partly filled
    monkeypatch.setattr(
        loss, "_CACHE_NUMBERS", 7 * VOCABULARY
    )  # and of these, and of the weight's gradient, several parts


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCABULARY, (TOKENS,))


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum")


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return linear_losses(hidden, weight, targets).total


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def gradients(function, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # type: ignore[no-untyped-def]
    hidden, weight, targets = inputs()
    value = function(hidden, weight, targets)
    (value * scale).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return value.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_loss_and_gradients_equal_the_plain_computation_in_fp32(scale: float) -> None:
    for found, reference in zip(gradients(ours, scale), gradients(plain, scale), strict=True):
        assert relative(found, reference) < 1e-5


def weighted(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    likelihoods = (hidden @ weight.T).log_softmax(1).gather(1, targets[:, None])
    return -(likelihoods.detach().exp() * likelihoods).sum()


def test_targets_that_count_by_their_probability_equal_the_plain_computation() -> None:
    found = gradients(lambda *given: linear_losses(*given, by_probability=True).total)
    for value, reference in zip(found, gradients(weighted), strict=True):
        assert relative(value, reference) < 1e-5
    assert relative(found[1], gradients(plain)[1]) > 0.1


def test_bf16_products_stay_within_a_hundredth() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(ours)
    for value, reference in zip(found, gradients(plain), strict=True):
        assert value.dtype == torch.float32
        assert relative(value, reference) < 1e-2


def test_gradients_of_the_weight_are_summed_in_fp32_over_however_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 a sum of equal parts grows no more from its 256-fold on."""
    monkeypatch.setattr(loss, "CHUNK", 1)
    monkeypatch.setattr(loss, "_ROWS", 1)
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        once, often = (
            torch.autograd.grad(ours(hidden[:1].expand(n, -1), weight, targets[:1].expand(n)), weight)[0]
            for n in (1, 600)
        )
    torch.testing.assert_close(often, 600 * once)


def test_the_likelihood_of_each_target_is_the_plain_one() -> None:
    hidden, weight, targets = inputs()
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(linear_nlls(hidden, weight, targets), expected.detach())


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made; views of `known` are not made."""

    largest = 0

    def __init__(self, known: torch.Tensor | None = None) -> None:
        super().__init__()
        self.known = known

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor) and (self.known is None or value.data_ptr() != self.known.data_ptr()):
                self.largest = max(self.largest, value.numel())
        return out


def test_no_tensor_of_tokens_by_vocabulary_is_ever_alive() -> None:
    with LargestTensor() as chunked:
        gradients(ours)
    with LargestTensor() as whole:
        gradients(plain)
    assert whole.largest == TOKENS * VOCABULARY
    assert chunked.largest == 32 * VOCABULARY


def test_without_gradients_none_is_made_of_the_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_ROWS", 4)
    hidden, weight, targets = inputs()
    with torch.no_grad(), LargestTensor(weight) as made:
        total = ours(hidden[:8].detach(), weight, targets[:8])
    assert total.item() == pytest.approx(plain(hidden[:8], weight, targets[:8]).item(), rel=1e-6)
    assert made.largest == 8 * VOCABULARY < HIDDEN * VOCABULARY


class RowsOfProducts(TorchDispatchMode):
    """Collects the sizes of matmuls: their rows, summands and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            self.sizes.add((*args[0].shape, args[1].shape[1]))
        return func(*args, **(kwargs or {}))


def test_however_varied_the_number_of_targets_matmuls_have_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two lengths, which meet the weight whole, for logits and hidden states, and in parts of two lengths."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loss, "CHUNK", 64)
    _, weight, targets = inputs()
    with RowsOfProducts() as products:
        for count in range(1, TOKENS):
            hidden = torch.randn(count, HIDDEN, requires_grad=True)
            ours(hidden, weight, targets[:count]).backward()
            linear_nlls(hidden, weight, targets[:count])
            assert len(Predictions(hidden, weight)[:64].logits) == min(count, 64)
    assert len(products.sizes) == 2 * (2 + 2)


def test_no_targets_have_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = inputs()
    total = ours(hidden[:0], weight, targets[:0])
    total.backward()
    assert total.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def llama(**options: object) -> LlamaForCausalLM:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes, **options)).eval()


def cohere() -> CohereForCausalLM:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = CohereConfig(num_hidden_layers=1, logit_scale=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    return CohereForCausalLM(config).eval()


def test_a_linear_head_is_recognised_whether_tied_or_not() -> None:
    assert has_linear_head(llama(tie_word_embeddings=True))
    assert has_linear_head(llama(tie_word_embeddings=False))
    assert has_linear_head(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)).eval())


def test_a_head_with_a_bias_is_none_also_before_the_bias_is_trained() -> None:
    model = llama(tie_word_embeddings=False)
    model.lm_head = nn.Linear(16, 64)
    nn.init.zeros_(model.lm_head.bias)
    assert not has_linear_head(model)


@pytest.mark.parametrize("make", [llama, cohere])
def test_the_module_gives_the_models_own_loss_for_linear_and_scaled_heads(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = make()
    assert has_linear_head(model) is (make is llama)
    ids = torch.randint(3, 64, (2, 12))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORED)], dim=1)
    batch = PackedBatch(ids, targets, torch.arange(12).repeat(2, 1), (12, 12), step_targets=22, step_tokens=24)
    expected = model(input_ids=ids, labels=ids).loss * 22
    assert torch.allclose(NextTokenLoss(model)(batch).total, expected, rtol=1e-5)
    nlls = NextTokenLoss(model)(batch, per_target=True)
    by_probability = NextTokenLoss(model, by_probability=True)
    assert torch.allclose(by_probability.train()(batch).total, (nlls * (-nlls).exp()).sum(), rtol=1e-5)
    assert torch.allclose(by_probability.eval()(batch).total, expected, rtol=1e-5), "held-out text is measured as ever"


def test_a_linear_head_is_recognised_whatever_device_the_model_is_made_on() -> None:
    model = llama(tie_word_embeddings=True)
    with torch.device("meta"):
        assert has_linear_head(model)
