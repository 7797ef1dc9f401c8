"""Packed documents do not see each other: in a row each has the logits that it has alone."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from inscp.data.pipeline import PackedRows, Pipeline
from inscp.data.sampling import EMPTY_ROW, MicroBatch
from inscp.data.sources import Source
from inscp.data.tagging import ConversationTagger, InsCPTagger, PlainTagger
from inscp.records import IGNORED, PackedBatch

ROW_LENGTH = 160
WORDS = (
    "The",
    "river",
    "runs",
    "past",
    "the",
    "old",
    "mill",
    "and",
    "nobody",
    "wakes",
    "the",
    "miller",
    "河水流過磨坊",
)


@pytest.fixture(scope="module")
def model(tiny_model_folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=[InsCPTagger(), PlainTagger(), ConversationTagger()], ids=lambda t: t.arm)
def batch(request, tiny_model_folder: str, tmp_path_factory) -> PackedBatch:
    """Every packed row of 40 conversations of several lengths, and one empty row."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    texts = [" ".join(WORDS[: 2 + number % len(WORDS)]) for number in range(40)]
    path.write_text("".join(json.dumps({"question": t[:20], "answer": t}) + "\n" for t in texts))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    rows = Pipeline([Source(str(path))], tokenizer, request.param, ROW_LENGTH).rows()
    indices = (*range(rows.report.rows), EMPTY_ROW)
    micro = MicroBatch(indices, int(rows.n_targets.sum()), int(rows.n_tokens.sum()))
    return PackedRows(rows, tokenizer.pad_token_id)[micro]


def documents(batch: PackedBatch) -> list[tuple[int, int, int]]:
    """Row, start and end of each document (padding counts as one), where the positions restart."""
    found = []
    for row, positions in enumerate(batch.position_ids):
        starts = [*(positions == 0).nonzero().flatten().tolist(), ROW_LENGTH]
        found += [(row, start, end) for start, end in pairwise(starts)]
    return found


@torch.no_grad()
def largest_difference(model: PreTrainedModel, batch: PackedBatch, position_ids: torch.Tensor) -> float:
    """Between the logits of documents in their rows and of each document run alone."""
    packed = model(input_ids=batch.input_ids, position_ids=position_ids, use_cache=False).logits
    alone = [model(input_ids=batch.input_ids[row : row + 1, start:end]).logits for row, start, end in documents(batch)]
    return max(
        float((packed[row, start:end] - logits[0]).abs().max())
        for (row, start, end), logits in zip(documents(batch), alone, strict=True)
    )


def test_packed_logits_equal_those_of_each_document_alone(model, batch):
    interior_doc_starts = sum(start > 0 for _, start, _ in documents(batch))
    assert interior_doc_starts > len(batch.input_ids)
    assert largest_difference(model, batch, batch.position_ids) < 1e-4


def test_without_restarting_positions_documents_leak(model, batch):
    through = torch.arange(ROW_LENGTH).expand_as(batch.position_ids)
    assert largest_difference(model, batch, through) > 1e-2


def test_positions_restart_exactly_where_documents_begin(batch):
    for row, start, end in documents(batch):
        assert batch.position_ids[row, start:end].tolist() == list(range(end - start))
        assert batch.targets[row, end - 1] == IGNORED
        has_target = batch.targets[row, start : end - 1] != IGNORED
        following = batch.input_ids[row, start + 1 : end]
        assert (batch.targets[row, start : end - 1] == following)[has_target].all()


def test_an_empty_row_has_no_target(batch):
    assert (batch.targets[-1] == IGNORED).all()
    assert (batch.targets[:-1] != IGNORED).any(dim=1).all()


def test_rows_count_their_targets_and_tokens(batch):
    with_targets = [end - start for row, start, end in documents(batch) if (batch.targets[row, start:end] >= 0).any()]
    assert batch.step_tokens == sum(with_targets) < batch.input_ids.numel()
    assert batch.step_targets == int((batch.targets >= 0).sum())
