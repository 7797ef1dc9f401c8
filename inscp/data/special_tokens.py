"""Special tokens, and tokenisation that treats special tokens written in a text as plain text."""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from inscp.records import LeftContext

_CONTROL = re.compile(r"[<\[|｜].+[>\]|｜]")
"""The spelling of tokens that only templates write; other added tokens (a line break) are ordinary text."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of all special tokens, whether or not they have a named role."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens, and those in the chat template that are not marked as special (`<think>`)."""
    template = str(tokenizer.chat_template or "")
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    written = {name for name in added if _CONTROL.fullmatch(name) and name in template}
    return sorted(written | {str(tokenizer.convert_ids_to_tokens(index)) for index in special_ids(tokenizer)})


def used_control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The control tokens that occur in training documents, with their ids: the template's, BOS, EOS and padding."""
    template, ids = str(tokenizer.chat_template or ""), tokenizer.get_vocab()
    named = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)
    names = [name for name in control_tokens(tokenizer) if name in template or name in named]
    return {name: ids[name] for name in names if name in ids}


def match_any(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the names; of two that begin alike, the longer one."""
    return re.compile("|".join(map(re.escape, sorted(names, reverse=True))) or "(?!)")


def plain_text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of a fast tokenizer that neither truncates nor pads, and treats special tokens in a text as plain text."""
    return _plain_text_tokenizer(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=2)
def _plain_text_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Tokenizer:
    own = deepcopy(tokenizer.backend_tokenizer)
    own.no_truncation()
    own.no_padding()
    own.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control_tokens(tokenizer)])
    own.encode_special_tokens = True
    return own


def encode_plain_batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    """The token ids of each text as plain text; `add_special_tokens` adds the tokenizer's own (BOS)."""
    if tokenizer.is_fast:
        encodings = plain_text_tokenizer(tokenizer).encode_batch(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]
    return list(tokenizer(texts, add_special_tokens=add_special_tokens, split_special_tokens=True)["input_ids"])


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str, left_context: LeftContext) -> list[int]:
    """The token ids of a text as plain text after `left_context`."""
    [ids] = encode_plain_batch(tokenizer, [left_context.text + text])
    return ids[left_context.n_tokens :]
