"""More tokens for a language that a model's tokenizer cuts into small pieces.

Byte-pair encoding goes on where the tokenizer's ended: texts are encoded as ever, and the most frequent pairs of its own
tokens inside words become new ones (continued BPE training, Purason et al. 2025, arXiv 2512.03989). So every new token
is reached, whereas of those that another tokenizer has learned many never are. What a new token begins with is the mean
of the tokens that it stands for (fast vocabulary transfer, Gee et al. 2022, arXiv 2402.09977).
"""

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.inert import inert
from inscp.errors import UserError

_FIRST_SYMBOL = 0xF0000
_ROWS = 64
"""Embeddings have a multiple of so many rows, which matrix products like."""


@dataclass
class Extension:
    """What a tokenizer learns from texts.

    Attributes:
        merges: pairs of tokens, in the order in which they are merged; by their names in the vocabulary.
        made_of: new token -> ids of the tokens that stood in its place.
        tokens_before, tokens_after: of the texts.
    """

    merges: list[tuple[str, str]] = field(default_factory=list)
    made_of: dict[str, list[int]] = field(default_factory=dict)
    tokens_before: int = 0
    tokens_after: int = 0


def learn(tokenizer: PreTrainedTokenizerBase, batches: Iterable[list[str]], n_tokens: int) -> Extension:
    """The new tokens that make texts shortest, found as byte-pair encoding finds them.

    Each of the tokenizer's own tokens is taken for a letter, so that the library's trainer goes on from them.

    Args:
        tokenizer: a fast one of byte-pair encoding.
        batches: of texts.
        n_tokens: how many to add; fewer where texts are few, as a pair must come twice.

    Raises:
        UserError: a tokenizer of another kind.
    """
    state = _state(tokenizer)
    words = _Words(inert(tokenizer), has_words=state["pre_tokenizer"] is not None)
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = trainers.BpeTrainer(vocab_size=_FIRST_SYMBOL, min_frequency=2, show_progress=False)
    raise NotImplementedError
