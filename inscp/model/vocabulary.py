"""New tokens for a language that a model's tokenizer splits into small pieces.

Byte-pair encoding continues where the tokenizer's training ended: texts are encoded as before, and the most frequent
pairs of tokens within words become new tokens (continued BPE training, Purason et al. 2025, arXiv 2512.03989). So every
new token is used, or is a step towards one that is; many tokens learned by another tokenizer never are. A new token is
initialised to the mean of the tokens that it replaces (fast vocabulary transfer, Gee et al. 2022, arXiv 2402.09977).
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.batching import grouped
from inscp.data.special_tokens import encode_plain_batch, plain_text_tokenizer
from inscp.errors import UserError
from inscp.pretrained import first_free_id, tokenizer_name

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token for a byte of a character that is not in the vocabulary."""
_FIRST_LETTER = 0x10000
"""Start of the Unicode planes in which each of the tokenizer's tokens is represented by one letter."""
_ROWS = 64
"""Embeddings are padded to a multiple of this number of rows, for fast matmuls."""


@dataclass
class Extension:
    """The tokens and merges that extend a tokenizer.

    Attributes:
        merges: pairs of tokens, in the order in which they are merged.
        made_of: new token -> ids of the tokens that it replaces, in the order of the new ids.
    """

    merges: list[tuple[str, str]] = field(default_factory=list)
    made_of: dict[str, list[int]] = field(default_factory=dict)


def learn_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], n_tokens: int) -> Extension:
    """Learn new tokens from texts by byte-pair encoding.

    Each of the tokenizer's tokens is represented by one letter, so that the library's trainer continues from them. A
    character that is spelled in bytes is represented by two, which are merged when it is learned.

    Args:
        tokenizer: a byte-pair encoding tokenizer.
        texts: texts in the language.
        n_tokens: number of tokens to add; fewer if the texts have too few pairs that occur twice.

    Raises:
        UserError: the tokenizer is of another kind.
    """
    alphabet = _Alphabet(tokenizer)
    words = [word for batch in grouped(texts, len) for word in alphabet.words(batch)]
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = len(alphabet.names) + n_tokens
    letters.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False))

    found, known = Extension(), tokenizer.get_vocab()
    closed = set(tokenizer.get_added_vocab())  # names that no text may produce
    for pair in json.loads(letters.to_str())["model"]["merges"]:
        one, other = ("".join(alphabet.names[letter] for letter in part) for part in pair)
        if not closed.isdisjoint((one, other, one + other)):
            closed.add(one + other)
            continue
        new = {alphabet.names[half]: alphabet.ids[half] for half in alphabet.halves.intersection("".join(pair))}
        if is_merge := bool(one and other):  # and not the two halves of a character
            new[one + other] = [index for letter in "".join(pair) for index in alphabet.ids[letter]]
        new = {name: ids for name, ids in new.items() if name not in known and name not in found.made_of}
        if len(found.made_of) + len(new) > n_tokens:
            break
        found.made_of |= new
        if is_merge:
            found.merges.append((one, other))
    return found


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """The number of tokens of all texts together."""
    return sum(len(ids) for batch in grouped(texts, len) for ids in encode_plain_batch(tokenizer, batch))


def extended(tokenizer: PreTrainedTokenizerBase, extension: Extension) -> PreTrainedTokenizerBase:
    """A tokenizer with the new tokens; existing tokens keep their ids, the new ones follow."""
    state, first = _state(tokenizer), first_free_id(tokenizer)
    own = {token["content"]: token["id"] for token in state["added_tokens"]}  # else they get ids after the new ones
    state["model"]["vocab"] |= own | {token: index for index, token in enumerate(extension.made_of, first)}
    state["model"]["merges"] += map(list, extension.merges)
    result = deepcopy(tokenizer)
    result._tokenizer = Tokenizer.from_str(json.dumps(state))
    return result


@torch.no_grad()
def resize_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extension: Extension) -> None:
    """Add rows for new tokens to a model's embeddings and output layer.

    Args:
        model: modified in place.
        tokenizer: its tokenizer, without the new tokens.
        extension: the new tokens.
    """
    first = first_free_id(tokenizer)
    needed = first + len(extension.made_of)
    if is_longer := needed > len(next(model.get_input_embeddings().parameters())):
        model.resize_token_embeddings(needed, pad_to_multiple_of=_ROWS, mean_resizing=False)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = {id(tensor): tensor for layer in layers for tensor in layer.parameters()}  # tied ones once
    for tensor in tensors.values():
        for index, ids in enumerate(extension.made_of.values(), first):
            tensor[index] = tensor[ids].float().mean(0)
        if is_longer:  # padding rows: random ones may get more probability than all tokens together
            tensor[needed:] = tensor[:first].float().mean(0)


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer's JSON state.

    Raises:
        UserError: it is not a fast byte-pair encoding tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
    if state["model"].get("type") != "BPE":
        what = "its tokenizer does not use byte-pair encoding, so tokens cannot be added"
        raise UserError(tokenizer_name(tokenizer), what, "Train the model with its own tokens.")
    return dict(state)


class _Alphabet:
    """Represents tokens as letters.

    Attributes:
        names: letter -> its token, or a character without a token; empty for the second half of such a character.
        ids: letter -> id of its token, or ids of the character's bytes.
        halves: letters that are the first half of such a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._unknown = _state(tokenizer)["model"].get("unk_token")
        self._tokenizer = plain_text_tokenizer(tokenizer)
        self._spellings: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.ids: dict[str, list[int]] = {}
        self.halves: set[str] = set()

    def words(self, texts: Sequence[str]) -> Iterator[str]:
        """The words of each text, separated by spaces."""
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            yield "".join(self._spelled(text, encoding))

    def _spelled(self, text: str, encoding: Encoding) -> Iterator[str]:
        """Letters, with a space where one of the tokenizer's words ends or letters meet other characters."""
        tokens = enumerate(zip(encoding.tokens, encoding.ids, encoding.word_ids, encoding.offsets, strict=True))
        before: Any = None
        # The bytes of a character share one offset.
        for _, group in groupby(tokens, key=lambda one: one[1][3] if _BYTE.fullmatch(one[1][0]) else one[0]):
            places = [place for _, place in group]
            token, _, word, (start, end) = places[0]
            ids = [index for _, index, _, _ in places]
            is_character = bool(_BYTE.fullmatch(token))
            if token == self._unknown or (is_character and len(ids) == 1):  # such as a line break in a template
                before = None
                yield " "
                continue
            kind = _kind(text[start:end], token)
            place = (word, kind, start if kind in ("number", "mark-up") else None)  # these are never merged
            is_led = before == (word, "space", None) and kind == "letter"
            if (place != before and not is_led) or token.startswith("▁"):
                yield " "
            before = place
            yield self._spelling(text[start:end] if is_character else token, ids, is_character)

    def _spelling(self, name: str, ids: list[int], is_character: bool) -> str:
        if name not in self._spellings:
            halves = [(name, ids), ("", list[int]())] if is_character else [(name, ids)]
            letters = [chr(_FIRST_LETTER + len(self.names) + number) for number in range(len(halves))]
            for letter, (part, of) in zip(letters, halves, strict=True):
                self.names[letter], self.ids[letter] = part, of
            if is_character:
                self.halves.add(letters[0])
            self._spellings[name] = "".join(letters)
        return self._spellings[name]


def _kind(piece: str, token: str) -> str:
    """The kind of a token, by the last character of its text."""
    if token in ("▁", "Ġ"):
        return "space"
    last = piece[-1:]
    if last in ("\u200c", "\u200d"):  # joiners, which occur inside words
        return "letter"
    if not last or (last.isascii() and not last.isalnum()) or last.isspace():  # like the text of templates
        return "mark-up"
    return {"L": "letter", "M": "letter", "N": "number"}.get(unicodedata.category(last)[0], "other")
