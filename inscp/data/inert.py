"""Text in which nothing is a special token, whatever somebody has written into it."""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from inscp.records import Lead

_CONTROL = re.compile(r"[<\[|｜].+[>\]|｜]")
"""How tokens are spelled that only a template writes; a line break may be an added token as well."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token id that is special to the tokenizer, whether or not it has a named role."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens, and those that the chat template writes though nobody has called them special (`<think>`)."""
    template = str(tokenizer.chat_template or "")
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    written = {name for name in added if _CONTROL.fullmatch(name) and name in template}
    return sorted(written | {str(tokenizer.convert_ids_to_tokens(index)) for index in special_ids(tokenizer)})


def written_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Those of the control tokens that training documents hold, with their ids: the template's, padding and the end."""
    template, ids = str(tokenizer.chat_template or ""), tokenizer.get_vocab()
    named = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)
    names = [name for name in control_tokens(tokenizer) if name in template or name in named]
    return {name: ids[name] for name in names if name in ids}


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """The first of the names in a text; of two that begin alike the longer one."""
    return re.compile("|".join(map(re.escape, sorted(names, reverse=True))) or "(?!)")


def inert(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of a fast tokenizer that neither cuts nor pads, and knows no special token in a text."""
    return _inert(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=2)
def _inert(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Tokenizer:
    own = deepcopy(tokenizer.backend_tokenizer)
    own.no_truncation()
    own.no_padding()
    own.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control_tokens(tokenizer)])
    own.encode_special_tokens = True
    return own


def inert_batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    """The token ids of each text; `add_special_tokens` puts around it what the tokenizer itself does (BOS)."""
    if tokenizer.is_fast:
        encodings = inert(tokenizer).encode_batch(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]
    return list(tokenizer(texts, add_special_tokens=add_special_tokens, split_special_tokens=True)["input_ids"])


def inert_ids(tokenizer: PreTrainedTokenizerBase, text: str, lead: Lead) -> list[int]:
    """The token ids of a text that stands behind `lead`."""
    [ids] = inert_batch(tokenizer, [lead.text + text])
    return ids[lead.n_tokens :]
