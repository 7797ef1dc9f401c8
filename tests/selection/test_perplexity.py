"""A record's score is what the model itself says about its text, however it is batched and windowed."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.template import ChatTemplate
from inscp.model.loss import NextTokenLoss
from inscp.pretrained import load_model, load_tokenizer
from inscp.records import IGNORED, Record, Score, TokenSequence, Turn
from inscp.selection.perplexity import Conditioning, Scorer, Scoring, windows

DOCUMENTS = [Record(f"d:{i}", (Turn("document", text),)) for i, text in enumerate(
    ["今天天氣很好，我們一起去公園走走。", "The river runs past the old mill. " * 5, "Joki virtaa.", "河", "😀😀"], 1
)]  # fmt: skip
PAIRS = [
    Record("p:1", (Turn("user", "Who sleeps?"), Turn("assistant", "The miller sleeps."))),
    Record("p:2", (Turn("user", "誰會叫醒他？"), Turn("assistant", "沒有人知道時間。"))),
]


@pytest.fixture(scope="module")
def model(tiny_model_folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_model_folder)


def nothing(*_: object) -> None:
    pass


def score(folder: str, records: list[Record], batch_tokens: int = 4096, **options: object) -> list[Score]:
    loss = NextTokenLoss(load_model(folder, torch.float32))
    scorer = Scorer(loss, load_tokenizer(folder), Scoring(**options), batch_tokens)  # type: ignore[arg-type]
    return scorer.score(records, nothing, nothing)


def plain_nll(model: PreTrainedModel, context: list[int], ids: list[int]) -> float:
    """One sequence, one forward pass, all logits in fp32."""
    with torch.no_grad():
        logits = model(torch.tensor([context + ids])).logits[0].double()
    return float(F.cross_entropy(logits[len(context) - 1 : -1], torch.tensor(ids), reduction="sum"))


@pytest.mark.parametrize("given", ["text", "template", "response"])
def test_the_nll_is_the_models_own_for_the_text_alone(
    given: Conditioning, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_model_folder: str
) -> None:
    records = PAIRS if given == "response" else DOCUMENTS + PAIRS
    scores = score(tiny_model_folder, records, given=given)
    assert [s.id for s in scores] == [r.source for r in records]
    for record, found in zip(records, scores, strict=True):
        texts = [turn.text for turn in record.turns]
        if given == "response":
            before, between, _ = ChatTemplate(tokenizer).literals(("user", "assistant"))
            asked, texts = tokenizer(texts[0], add_special_tokens=False)["input_ids"], texts[1:]
            contexts = [[*before.ids, *asked, *between.ids]]
        elif given == "template":
            contexts = [list(ChatTemplate(tokenizer).before_assistant().ids)] * len(texts)
        else:
            contexts = [[tokenizer.convert_tokens_to_ids("<|endoftext|>")]] * len(texts)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        expected = sum(plain_nll(model, c, i) for c, i in zip(contexts, ids, strict=True))
        assert found.nll == pytest.approx(expected, rel=1e-5)
        assert found.n_tokens == sum(map(len, ids))
        assert found.n_bytes == sum(len(text.encode()) for text in texts)
        assert found.perplexity == pytest.approx(math.exp(expected / found.n_tokens), rel=1e-4)
        assert found.bits_per_byte == pytest.approx(expected / math.log(2) / found.n_bytes, rel=1e-4)


def test_how_records_are_batched_changes_nothing(tiny_model_folder: str) -> None:
    together, alone = (score(tiny_model_folder, DOCUMENTS, batch_tokens=n) for n in (4096, 1))
    for a, b in zip(together, alone, strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-5)


def test_special_tokens_in_a_text_are_scored_as_text(tiny_model_folder: str) -> None:
    [found] = score(tiny_model_folder, [Record("x:1", (Turn("document", "<|im_end|>"),))])
    assert found.n_tokens > 1


@pytest.mark.parametrize(
    ("length", "window", "overlap"), [(10, 16, 4), (16, 16, 4), (17, 16, 4), (100, 16, 15), (99, 8, 1)]
)
def test_every_target_stands_in_exactly_one_window_after_its_overlap(length: int, window: int, overlap: int) -> None:
    ids = np.arange(length, dtype=np.int32)
    labels = ids.copy()
    labels[:2] = IGNORED
    pieces = list(windows(TokenSequence("s", ids, labels), window, overlap))
    assert max(len(piece.input_ids) for piece in pieces) <= window
    scored = [t for piece in pieces for t in piece.labels[1:].tolist() if t != IGNORED]
    assert scored == list(range(2, length))
    for piece in pieces[1:]:
        assert (piece.labels[:overlap] == IGNORED).all()
        assert piece.labels[overlap] != IGNORED


def test_a_long_record_is_scored_window_by_window(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_model_folder: str
) -> None:
    text = DOCUMENTS[1].turns[0].text
    [found] = score(tiny_model_folder, [DOCUMENTS[1]], window=16, overlap=4)
    ids = [tokenizer.convert_tokens_to_ids("<|endoftext|>"), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    expected = plain_nll(model, ids[:1], ids[1:16])
    for begin in range(16, len(ids), 12):
        expected += plain_nll(model, ids[begin - 4 : begin], ids[begin : begin + 12])
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert found.n_tokens == len(ids) - 1


def test_a_record_without_an_answer_has_no_score_for_responses(tiny_model_folder: str) -> None:
    told: list[tuple[str, str]] = []
    scorer = Scorer(NextTokenLoss(load_model(tiny_model_folder, torch.float32)), load_tokenizer(tiny_model_folder),
                    Scoring("response"), 64)  # fmt: skip
    scores = scorer.score([DOCUMENTS[0], PAIRS[0]], lambda *what: told.append(what), nothing)
    assert [s.id for s in scores] == ["p:1"]
    assert [where for where, _ in told] == ["d:1"]


def test_a_record_without_a_score_is_reported_once(tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inscp.data.tokenization._MAX_CHARACTERS", 20)
    told: list[str] = []
    scorer = Scorer(NextTokenLoss(load_model(tiny_model_folder, torch.float32)), load_tokenizer(tiny_model_folder),
                    Scoring(), 64)  # fmt: skip
    scores = scorer.score(DOCUMENTS[:2], lambda where, _: told.append(where), nothing)
    assert ([s.id for s in scores], told) == (["d:1"], ["d:2"])


@pytest.mark.parametrize("records", [PAIRS, [DOCUMENTS[0]], []])
def test_the_shares_of_the_work_make_a_whole_also_where_windows_have_nothing_to_score(
    records: list[Record], tiny_model_folder: str
) -> None:
    shares: list[float] = []
    passed = 0

    def on_batch(share: float, n_tokens: int) -> None:
        nonlocal passed
        shares.append(share)
        passed += n_tokens

    scorer = Scorer(NextTokenLoss(load_model(tiny_model_folder, torch.float32)), load_tokenizer(tiny_model_folder),
                    Scoring("response", window=8, overlap=2), 16)  # fmt: skip
    scores = scorer.score(records, nothing, on_batch)
    assert sum(shares) == pytest.approx(1.0)
    assert passed >= sum(score.n_tokens for score in scores), "with those that they follow"
