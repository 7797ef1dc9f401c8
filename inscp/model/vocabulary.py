"""More tokens for a language that a model's tokenizer cuts into small pieces.

Byte-pair encoding goes on where the tokenizer's ended: texts are encoded as ever, and the most frequent pairs of tokens
inside words become new ones (continued BPE training, Purason et al. 2025, arXiv 2512.03989). So every new token is
reached, whereas many are not that another tokenizer has learned. What a new token begins with is the mean of the tokens
that it stands for (fast vocabulary transfer, Gee et al. 2022, arXiv 2402.09977).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.inert import inert
from inscp.errors import UserError

_BATCH = 1024
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that stands for a byte of a character that the vocabulary does not have."""
_FIRST_LETTER = 0xF0000
"""Of Unicode's private planes, in which each of the tokenizer's tokens is one letter."""
_ROWS = 64
"""Embeddings are lengthened to a multiple of it, which matrix products like."""


@dataclass
class Extension:
    """What a tokenizer has learned.

    Attributes:
        characters: that were bytes before.
        merges: pairs of tokens, in the order in which they are merged.
        made_of: new token -> ids of those that stood in its place, in the order of the new ids.
    """

    characters: list[str] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    made_of: dict[str, list[int]] = field(default_factory=dict)


def learn(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], n_tokens: int) -> Extension:
    """The new tokens that byte-pair encoding finds in texts.

    Each of the tokenizer's tokens is taken for a letter, so that the library's trainer goes on from them.

    Args:
        tokenizer: of byte-pair encoding.
        texts: in the language; a hundred megabytes are plenty.
        n_tokens: how many to add; fewer where the texts have fewer pairs that come twice.

    Raises:
        UserError: a tokenizer of another kind.
    """
    vocabulary: dict[str, int] = _state(tokenizer)["model"]["vocab"]
    alphabet = _Alphabet(inert(tokenizer))
    words = [word for start in range(0, len(texts), _BATCH) for word in alphabet.words(texts[start : start + _BATCH])]
    found = Extension()
    characters = Counter(letter for word in words for letter in word if letter in alphabet.characters)
    common = [letter for letter, count in characters.most_common(n_tokens) if count > 1]
    for letter in common:
        character, ids = alphabet.names[letter], alphabet.ids[letter]
        found.characters.append(character)
        found.made_of[character] = ids
    rare = dict.fromkeys(map(ord, set(characters) - set(common)), " ")
    words = [word.translate(rare) for word in words]

    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = len({letter for word in words for letter in word} - {" "}) + n_tokens - len(common)
    letters.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False))
    for pair in json.loads(letters.to_str())["model"]["merges"]:
        one, other = ("".join(alphabet.names[letter] for letter in part) for part in pair)
        found.merges.append((one, other))
        if one + other not in vocabulary:
            ids = [index for letter in "".join(pair) for index in alphabet.ids[letter]]
            found.made_of.setdefault(one + other, ids)
    return found


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """Of all texts together."""
    batches = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
    own = inert(tokenizer)
    return sum(len(one.ids) for batch in batches for one in own.encode_batch(batch, add_special_tokens=False))


def extended(tokenizer: PreTrainedTokenizerBase, extension: Extension) -> PreTrainedTokenizerBase:
    """A tokenizer that knows what was learned; its own tokens keep their ids, the new ones follow."""
    state, first = _state(tokenizer), _first_id(tokenizer)
    own = {token["content"]: token["id"] for token in state["added_tokens"]}  # which would get ids behind the new ones
    state["model"]["vocab"] |= own | {token: index for index, token in enumerate(extension.made_of, first)}
    state["model"]["merges"] += map(list, extension.merges)
    result = deepcopy(tokenizer)
    result._tokenizer = Tokenizer.from_str(json.dumps(state))
    return result


@torch.no_grad()
def lengthen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extension: Extension) -> None:
    """Give a model rows for new tokens, in its embeddings and its output layer.

    Args:
        model: is changed.
        tokenizer: without the new tokens.
        extension: the new tokens.
    """
    first = _first_id(tokenizer)
    needed = first + len(extension.made_of)
    if needed > len(next(model.get_input_embeddings().parameters())):
        model.resize_token_embeddings(needed, pad_to_multiple_of=_ROWS, mean_resizing=False)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = {id(tensor): tensor for layer in layers for tensor in layer.parameters()}  # tied ones once
    for tensor in tensors.values():
        for index, ids in enumerate(extension.made_of.values(), first):
            tensor[index] = tensor[ids].float().mean(0)


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Raises:
        UserError: it is no fast tokenizer of byte-pair encoding.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
    if state["model"].get("type") != "BPE":
        what = "its tokenizer is none of byte-pair encoding, which alone can learn more tokens"
        raise UserError(tokenizer.name_or_path or "tokenizer", what, "Train the model with the tokens that it has.")
    return dict(state)


def _first_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Of the new tokens."""
    return max(tokenizer.get_vocab().values()) + 1


class _Alphabet:
    """Tokens as letters.

    Attributes:
        names: letter -> the token, or the character that the tokenizer has none for.
        ids: letter -> its token, or those of the character's bytes.
        characters: letters that stand for such characters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.ids: dict[str, list[int]] = {}
        self.characters: set[str] = set()

    def words(self, texts: Sequence[str]) -> Iterator[str]:
        """Of each text, its words between spaces."""
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            yield "".join(self._spelled(text, encoding))

    def _spelled(self, text: str, encoding: Encoding) -> Iterator[str]:
        """Letters, with a space where a word ends, as the tokenizer has them, or letters meet other characters."""
        tokens = enumerate(zip(encoding.tokens, encoding.ids, encoding.word_ids, encoding.offsets, strict=True))
        before: Any = None
        # The bytes of a character have one offset.
        for _, group in groupby(tokens, key=lambda one: one[1][3] if _BYTE.fullmatch(one[1][0]) else one[0]):
            [(number, (token, _, word, (start, end))), *_], ids = (found := list(group)), [one[1][1] for one in found]
            is_character = bool(_BYTE.fullmatch(token))
            kind = _kind(text[start:end])
            place = number if kind == "number" else (word, kind)
            if place != before or token.startswith("▁"):
                yield " "
            before = place
            yield self._letter(text[start:end] if is_character else token, ids, is_character)

    def _letter(self, name: str, ids: list[int], is_character: bool) -> str:
        if name not in self._letters:
            letter = self._letters[name] = chr(_FIRST_LETTER + len(self._letters))
            self.names[letter], self.ids[letter] = name, ids
            if is_character:
                self.characters.add(letter)
        return self._letters[name]


def _kind(piece: str) -> str:
    """Of the last character of a piece of text; numbers keep the digits that the tokenizer gives them."""
    kind = unicodedata.category(piece[-1])[0] if piece else ""
    return {"L": "letter", "M": "letter", "N": "number"}.get(kind, "other")
