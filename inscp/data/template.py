"""The chat template, asked once: what it puts before, between and after the turns, as token ids.

No template is re-implemented. The tokenizer renders a conversation whose turns are sentinels; what stands between
the sentinels is the template's own text. Because only sentinels pass through the template, it can neither strip nor
rewrite the data, and because the data is tokenised apart, nothing in it becomes a special token.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from inscp.errors import UserError

PINNED_DATE = datetime(2024, 7, 26)
"""The date that templates with a date are given (the default in Llama-3.1's own template), so that the same input
has the same ids on every day."""

SYSTEM_FROM_TEMPLATE, NO_SYSTEM = "template", "none"


class ChatTemplate:
    """A tokenizer's chat template as literals between turns.

    Args:
        tokenizer: with a chat template.
        system: `template` (whatever the template adds by itself), `none` (no system turn), or the text of one.

    Raises:
        UserError: no template, or one that cannot be used for training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str = SYSTEM_FROM_TEMPLATE) -> None:
        require_chat_template(tokenizer, mend=", or PlainTagger as data.tagger and data.validation_tagger")
        self.tokenizer = tokenizer
        self.system = system
        after = self._between(("user", "assistant"))[-1]
        special = special_ids(tokenizer)
        end = next((index for index, token in enumerate(after) if token in special), None)
        if end is None:
            raise UserError(
                tokenizer.name_or_path or "tokenizer",
                "its chat template ends the assistant's turn with no special token, so a model could not learn to stop",
                "Add the end-of-turn token to the template's assistant turn.",
            )
        self.end_of_turn_id = after[end]
        self.after_assistant = after[: end + 1]

    def before_assistant(self, said: str = "") -> tuple[int, ...]:
        """What stands before the assistant's text when the user has said something, or nothing.

        Args:
            said: in which nothing is a special token.
        """
        if not said:
            return self.literals(("user", "assistant"), empty=(0,))[0]
        before, between, _ = self.literals(("user", "assistant"))
        said_ids = self.tokenizer(said, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return (*before, *said_ids, *between)

    def literals(self, roles: Sequence[str], empty: Sequence[int] = ()) -> list[tuple[int, ...]]:
        """Token ids of the template's text before, between and after the turns of a conversation.

        Args:
            roles: the turns' roles.
            empty: which turns have no text at all; the literals on their two sides come as one.

        Returns:
            one tuple more than there are turns with text.
        """
        result = self._between(roles, empty)
        if self.system == NO_SYSTEM and roles[0] == "user":
            result[0] = self._later_round(empty=0 in empty)
        return result

    def _between(self, roles: Sequence[str], empty: Sequence[int] = ()) -> list[tuple[int, ...]]:
        sentinels = ["" if number in empty else f"inscpsentinel{number}turn" for number in range(len(roles))]
        turns = [{"role": role, "content": content} for role, content in zip(roles, sentinels, strict=True)]
        if self.system not in (SYSTEM_FROM_TEMPLATE, NO_SYSTEM) and roles[0] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        mend = "Leave data.tagger.system at template, or take data with turns that the template accepts."
        rest = _accepted(self.tokenizer, turns, mend)
        if turns[0]["role"] == "system" and turns[0]["content"].strip() not in rest:
            raise UserError(
                self.tokenizer.name_or_path or "tokenizer",
                "its chat template leaves the system turn out where the assistant has the last word",
                "Leave data.tagger.system at template, or take data without system turns.",
            )
        result: list[tuple[int, ...]] = []
        for role, sentinel in zip(roles, sentinels, strict=True):
            if not sentinel:
                continue
            if rest.count(sentinel) != 1:
                raise UserError(
                    self.tokenizer.name_or_path or "tokenizer",
                    f"its chat template renders the {role} turn of {'/'.join(roles)} {rest.count(sentinel)} times",
                    "Mend the template, or take data whose turns are as the template expects.",
                )
            literal, rest = rest.split(sentinel)
            result.append(self._ids(literal, after_text=bool(result), before_text=True))
        return [*result, self._ids(rest, after_text=True, before_text=False)]

    def _later_round(self, empty: bool) -> tuple[int, ...]:
        """What opens a user turn that is not the first one, which is what opens a turn without any system turn."""
        first = self._between(("user", "assistant"), empty=(0,) if empty else ())[0]
        _, _, between, *_, after = self._between(("user", "assistant") * 2, empty=(2,) if empty else ())
        # What closes an answer stands at the end too, but for a line break, say; and what opens the first turn ends as
        # what opens a later one.
        closing, known = shared_length(between, after), shared_length(between[::-1], first[::-1])
        if not closing:
            raise UserError(
                self.tokenizer.name_or_path or "tokenizer",
                "its chat template closes the last answer otherwise than the ones before it, so that what opens a turn "
                "cannot be told",
                "Leave data.tagger.system at template.",
            )
        opening, begin = between[max(closing, len(between) - known) :], self.tokenizer.bos_token_id
        lacks_begin = begin is not None and first[:1] == (begin,) and opening[:1] != (begin,)
        return ((begin,) if lacks_begin else ()) + opening

    def _ids(self, literal: str, after_text: bool, before_text: bool) -> tuple[int, ...]:
        def encode(text: str) -> tuple[int, ...]:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

        if not self.tokenizer.tokenize("a")[0].startswith("▁"):
            return encode(literal)
        # SentencePiece gives whatever is tokenised by itself a leading space. Before a text, the template's own space
        # is that same one, and kept it would be there twice; after a text, a line break ahead keeps it from being made.
        if before_text:
            literal = literal.removesuffix(" ")
        ahead, whole = encode("\n"), encode(f"\n{literal}")
        return whole[len(ahead) :] if after_text and whole[: len(ahead)] == ahead else encode(literal)


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


_DATE_CODES = {
    f"%{flag}{code}": PINNED_DATE.strftime(f"%{code}").removeprefix("0" if flag else "")
    for flag in ("-", "")
    for code in "aAbBcdHIjmMpSUwWxXyY"
}
_STRFTIME_NOW = (
    "{% macro strftime_now(format) %}{% set date = namespace(text=format) %}"
    f"{{% for code, value in {_DATE_CODES}.items() %}}"
    "{% set date.text = date.text.replace(code, value) %}"
    "{% endfor %}{{ date.text }}{% endmacro %}\n"
)
"""Stands ahead of the template in place of the function that gives today; the template can be passed no other one,
because transformers (5.23, `_plain_template_data`) hands it plain data only. Jinja drops the final line break."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> str:
    """The conversation as the tokenizer's template renders it, on the pinned date and without reasoning.

    With `enable_thinking=False` templates like Qwen3's open an answer as they render one that has no reasoning, so that
    what was trained and what is asked begin alike; other templates do not look at it.

    Args:
        tokenizer: with a chat template.
        turns: `role` and `content` of each.
        add_generation_prompt: end with what opens the assistant's answer.
        continue_final_message: leave the last turn open.
    """
    return str(
        tokenizer.apply_chat_template(
            turns,
            chat_template=_STRFTIME_NOW + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            date_string=PINNED_DATE.strftime("%d %b %Y"),
            enable_thinking=False,
        )
    )


def _accepted(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], mend: str, **options: bool) -> str:
    """As `render`.

    Raises:
        UserError: the template refuses the turns.
    """
    try:
        return render(tokenizer, turns, **options)
    except Exception as error:  # a template may raise anything, its own refusals included
        roles = "/".join(turn["role"] for turn in turns)
        what = f"its chat template refuses the turns {roles} ({error})"
        raise UserError(tokenizer.name_or_path or "tokenizer", what, mend) from error


def require_chat_template(tokenizer: PreTrainedTokenizerBase, model: str = "", mend: str = "") -> None:
    """
    Args:
        tokenizer: the model's.
        model: how the user calls it; by default the tokenizer's own name.
        mend: what else can be done.

    Raises:
        UserError: it has no chat template.
    """
    if not tokenizer.chat_template:
        where = model or tokenizer.name_or_path or "tokenizer"
        mend = f"Take the instruct version of the model{mend}."
        raise UserError(where, "it has no chat template, so this is not a chat model", mend)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> list[int]:
    """The conversation up to where the assistant begins to answer, as token ids.

    Only the template's own tokens are special: an end of turn that somebody writes stays text, as in training.

    Raises:
        UserError: the template refuses the turns.
    """
    named = _special_names(tokenizer)
    said: list[str] = []

    def hidden(name: re.Match[str]) -> str:
        said.append(name[0])
        return f"inscpsentinel{len(said) - 1}name"

    inert = [{**turn, "content": named.sub(hidden, turn["content"])} for turn in turns]
    mend = "Ask without a system turn, or by turns that the template accepts."
    text = _accepted(tokenizer, inert, mend, add_generation_prompt=True)
    ids: list[int] = []
    for number, piece in enumerate(re.split(r"inscpsentinel(\d+)name", text)):
        is_name = number % 2 == 1
        piece = said[int(piece)] if is_name else piece
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=is_name)["input_ids"]
    return ids


@lru_cache(maxsize=2)
def _special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    special = sorted({str(tokenizer.convert_ids_to_tokens(index)) for index in special_ids(tokenizer)})
    return re.compile("|".join(map(re.escape, reversed(special))) or "(?!)")  # of two that begin alike, the longer one


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token id that is special to the tokenizer, whether or not it has a named role."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)
