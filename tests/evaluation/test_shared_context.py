"""Continuations behind a context that is computed once are as likely as each behind a context of its own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.shared_context import find_trees, tree_nlls
from inscp.model.device import scoring_model
from inscp.model.likelihood import summed_nlls
from inscp.model.loss import NextTokenLoss
from inscp.pretrained import load_tokenizer
from inscp.records import IGNORED, TokenSequence

QUESTIONS = {
    "Question: what does a river run to? It runs for a long time before it is there.\nAnswer:": [
        " the sea",
        " a lake",
        " x",
    ],
    "夜市是什麼？請用一句話說明，不要太長。\n": ["晚上的市場。", "白天的學校，裡面有很多老師和學生。"],
    "Short:": [
        " one of the answers is far longer than its question",
        " and so is this other one of them, as it should",
    ],
    "Only one continuation follows this context:": [" this one"],
}


def sequence(context: list[int], continuation: list[int]) -> TokenSequence:
    ids = np.array(context + continuation, dtype=np.int32)
    return TokenSequence("", ids, np.where(np.arange(len(ids)) < len(context), IGNORED, ids))


@pytest.fixture(scope="module")
def loss(tiny_model_folder: str) -> NextTokenLoss:
    return scoring_model(tiny_model_folder, torch.float32)


@pytest.fixture(scope="module")
def sequences(tiny_model_folder: str) -> list[TokenSequence]:
    tokenizer = load_tokenizer(tiny_model_folder)
    texts = [(question, answer) for question, answers in QUESTIONS.items() for answer in answers]
    return [sequence(*(tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)) for pair in texts]


def test_likelihoods_equal_those_of_each_sequence_alone(
    loss: NextTokenLoss, sequences: list[TokenSequence], tiny_model_folder: str
) -> None:
    alone = [float(summed_nlls(loss, [one])[0]) for one in sequences]
    for batch_tokens in (1, 4096):
        found = dict(tree_nlls(loss, find_trees(loss, sequences), batch_tokens))
        assert found == pytest.approx({place: alone[place] for place in range(5)}, rel=1e-5)
    every = dict(LocalModel(tiny_model_folder, torch.float32, 1).nlls(sequences))
    assert [every[place] for place in range(len(sequences))] == pytest.approx(alone, rel=1e-5)


def test_a_context_is_computed_once_where_that_saves_enough(
    loss: NextTokenLoss, sequences: list[TokenSequence]
) -> None:
    trees = find_trees(loss, sequences)
    assert [tree.places for tree in trees] == [[0, 1, 2], [3, 4]]
    assert sum(tree.length for tree in trees) < 0.75 * sum(len(one.input_ids) for one in sequences[:5])


def test_many_continuations_make_several_rows(loss: NextTokenLoss) -> None:
    context = list(range(5, 105))
    many = [sequence(context, [7 + k % 50, 9, 11 + k % 3, *range(5, 45)]) for k in range(60)]
    trees = find_trees(loss, many)
    assert len(trees) > 1
    assert max(tree.length for tree in trees) <= 1024
    assert sorted(place for tree in trees for place in tree.places) == list(range(60))


def test_sequences_with_targets_here_and_there_are_in_no_tree(loss: NextTokenLoss) -> None:
    plain = [sequence(list(range(5, 60)), [k, 7, 8, 9]) for k in (5, 6)]
    for one in plain:
        one.labels[-2] = IGNORED
    assert find_trees(loss, plain) == []


TEXT = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


@pytest.mark.parametrize("window", [16, 4096])
@pytest.mark.parametrize("model", [
    lambda window: MistralForCausalLM(MistralConfig(**TEXT, sliding_window=window)),
    lambda window: Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=Gemma3TextConfig(**TEXT, sliding_window=window), vision_config=IMAGES)
    ),
])  # fmt: skip
def test_a_model_that_sees_a_window_only_has_no_trees(
    model: Callable[[int], PreTrainedModel], window: int, sequences: list[TokenSequence]
) -> None:
    loss = NextTokenLoss(model(window))
    assert loss.by_document
    assert loss.linear_head
    assert bool(find_trees(loss, sequences)) == (window == 4096)
