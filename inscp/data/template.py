"""The chat template as token ids: what it puts before, between and after the turns.

No template is re-implemented. The tokenizer renders a conversation whose turns are sentinels; the text between the
sentinels is the template's own. Because only sentinels pass through the template, it can neither strip nor rewrite the
data, and because the data is tokenised separately, nothing in it becomes a special token. An answer follows the
generation prompt, as when the model is prompted.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from inscp.data.rendering import render_prompt, render_turns, require_chat_template
from inscp.data.special_tokens import control_tokens, encode_plain, match_any, special_ids
from inscp.errors import UserError
from inscp.pretrained import end_ids, tokenizer_name
from inscp.records import LeftContext

SYSTEM_FROM_TEMPLATE, NO_SYSTEM = "template", "none"
_PROBE = "a"


class TemplateText(NamedTuple):
    """The template's text between two turns.

    Attributes:
        ids: its tokens.
        left_context: context in which the following text is tokenised.
        joined: its beginning that is tokenised with the preceding text, and whose tokens are not in `ids`.
    """

    ids: tuple[int, ...]
    left_context: LeftContext
    joined: str = ""


class ChatTemplate:
    """A tokenizer's chat template as literals between turns.

    Args:
        tokenizer: with a chat template.
        system: `template` (whatever the template adds by itself), `none` (no system turn), or the text of the turn.

    Raises:
        UserError: there is no template, or it cannot be used for training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str = SYSTEM_FROM_TEMPLATE) -> None:
        require_chat_template(tokenizer, fix=", or PlainTagger as data.tagger and data.validation_tagger")
        self.tokenizer = tokenizer
        self.system = system
        self._name = tokenizer_name(tokenizer)
        self._special = special_ids(tokenizer)
        n_tokens = len(self._encoded("\n"))
        self._left_contexts = (
            LeftContext(),
            LeftContext(" "),
            LeftContext("\n", n_tokens),
            LeftContext("\n ", n_tokens),
        )
        self.after_assistant = self._closing()

    @property
    def end_of_turn_id(self) -> int:
        """The token with which the model ends its last answer."""
        return self.after_assistant[-1]

    @property
    def closing_ids(self) -> set[int]:
        """The special tokens that close an answer: Phi-4-mini's last answer has two, the others only the first."""
        return {self.end_of_turn_id} | (self._special & {*self.after_assistant})

    def _closing(self) -> tuple[int, ...]:
        """The template's text after the last answer, up to the token that ends the turn."""
        after = self._literals(("user", "assistant"))[-1].ids
        if (end := self._first_special(after)) is not None:
            following = list(takewhile(lambda index: index in self._special, after[end + 1 :]))
            eos = self.tokenizer.eos_token_id
            if after[end] != eos and eos in following:  # Command-R7B ends the response, and then the turn
                end += 1 + following.index(eos)
            return after[: end + 1]
        # Apertus closes an answer only if a turn follows it; GLM ends one by opening the next turn.
        with suppress(UserError):
            inside, ends = self._literals(("user", "assistant", "user"))[2].ids, end_ids(self.tokenizer)
            if (place := next((place for place, index in enumerate(inside) if index in ends), None)) is not None:
                return inside[: place + 1]
        raise UserError(
            self._name,
            "its chat template ends the assistant's turn with no special token, so a model could not learn to stop",
            "In the template, write the model's end-of-turn token after the assistant's text.",
        )

    def _first_special(self, ids: Sequence[int]) -> int | None:
        """The index of the first special token."""
        return next((place for place, index in enumerate(ids) if index in self._special), None)

    def end_inside(self, ids: Sequence[int]) -> int:
        """How many tokens between an answer and the next turn belong to the answer: up to the token that ends it.

        Raises:
            UserError: no token ends it.
        """
        if tuple(ids[: len(self.after_assistant)]) == self.after_assistant:
            return len(self.after_assistant)
        end = self._first_special(ids)
        if end is None or (ids[end] != self.end_of_turn_id and ids[end] == self._opener):
            what = "its chat template ends an answer inside a conversation without the end-of-turn token"
            raise UserError(self._name, what, "Fix the template, or use single-turn conversations.")
        return end + 1

    @cached_property
    def _opener(self) -> int | None:
        """The special token that opens a turn, if there is one."""
        first = self._literals(("user", "assistant"))[0].ids
        return next((index for index in first if index in self._special and index != self.tokenizer.bos_token_id), None)

    def before_assistant(self, said: str = "") -> TemplateText:
        """The template's text before the assistant's, after a user turn that has a text or is empty.

        Args:
            said: the user's text, taken as plain text.

        Raises:
            UserError: `said` is empty, and the template omits such a turn.
        """
        if said:
            before, between, _ = self.literals(("user", "assistant"))
            request = encode_plain(self.tokenizer, said + between.joined, before.left_context)
            return TemplateText((*before.ids, *request, *between.ids), between.left_context)
        turn, nothing = (self._texts(("user", "assistant"), empty)[0] for empty in ((), (0,)))
        if not nothing.startswith(turn.rstrip()):
            raise UserError(self._name, "its chat template omits an empty user turn", "Set data.tagger.user.")
        return self.literals(("user", "assistant"), empty=(0,))[0]

    def literals(self, roles: Sequence[str], empty: Sequence[int] = ()) -> list[TemplateText]:
        """The template's text before, between and after the turns of a conversation.

        Args:
            roles: the turns' roles.
            empty: indices of turns without text; the literals on both sides of such a turn are merged.

        Returns:
            one literal more than there are turns with text.
        """
        result = self._literals(roles, empty)
        if self.system == NO_SYSTEM and roles[0] == "user":
            opening = self._later_round(empty=(0,) if 0 in empty else ())
            result[0] = self._literal(opening, after_text=False, before_text=True)
        return result

    def _literals(self, roles: Sequence[str], empty: Sequence[int] = ()) -> list[TemplateText]:
        first, *others, last = self._texts(roles, empty)
        spoken = [role for number, role in enumerate(roles) if number not in empty]
        result = [self._literal(first, after_text=False, before_text=True)]
        for role, text in zip(spoken[:-1], others, strict=True):
            # In a prompt, a line break may have merged into the question's last token (cl100k's "?\n").
            found = re.match(r"\s*\n", text) if role != "assistant" else None
            joined = found[0] if found and self._is_apart(found[0], text[found.end() :]) else ""
            literal = self._literal(text[len(joined) :], after_text=True, before_text=True)
            result.append(literal._replace(joined=joined))
        return [*result, self._literal(last, after_text=True, before_text=False)]

    def _texts(self, roles: Sequence[str], empty: Sequence[int] = ()) -> list[str]:
        sentinels = ["" if number in empty else f"inscpsentinel{number}turn" for number in range(len(roles))]
        turns = [{"role": role, "content": content} for role, content in zip(roles, sentinels, strict=True)]
        if self.system not in (SYSTEM_FROM_TEMPLATE, NO_SYSTEM) and roles[0] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        fix = "Leave data.tagger.system at template, or use data with turns that the template accepts."
        rest = render_turns(self.tokenizer, turns, fix)
        is_lost = turns[0]["role"] == "system" and turns[0]["content"].strip() not in rest
        if is_lost and rest == render_turns(self.tokenizer, turns[1:], fix):  # and it is not a switch that it obeys
            raise UserError(
                self._name,
                "its chat template omits the system turn if the assistant speaks last",
                "Leave data.tagger.system at template, or use data without system turns.",
            )
        if roles[-1] == "assistant" and turns[1:] and rest.count(sentinels[-1]) == 1:
            opened, closed = rest.split(sentinels[-1])
            prompt = render_prompt(self.tokenizer, turns[:-1], fix)
            rest = (opened if opened.startswith(prompt) else prompt) + sentinels[-1] + closed
        result = []
        for role, sentinel in zip(roles, sentinels, strict=True):
            if not sentinel:
                continue
            if rest.count(sentinel) != 1:
                raise UserError(
                    self._name,
                    f"its chat template renders the {role} turn of {'/'.join(roles)} {rest.count(sentinel)} times",
                    "Fix the template, or use data with the turns that the template expects.",
                )
            literal, rest = rest.split(sentinel)
            result.append(literal)
        return [*result, rest]

    def _later_round(self, empty: Sequence[int]) -> str:
        """The opening of a user turn that is not the first, and so has no system turn before it."""
        first = self._texts(("user", "assistant"), empty)[0]
        _, _, between, *_, after = self._texts(("user", "assistant") * 2, empty=(2,) if empty else ())
        special = match_any(str(self.tokenizer.convert_ids_to_tokens(index)) for index in self._special)
        inside, last = special.search(between), special.search(after)
        if inside is None:
            raise UserError(
                self._name,
                "its chat template closes only the last answer, so the opening of a turn cannot be identified",
                "Leave data.tagger.system at template.",
            )
        # An answer is closed by a special token, and by the white space and special tokens that follow it at the end of
        # the conversation too; the openings of the first and of a later turn end alike.
        rest = between[inside.end() :]
        shared = rest[: common_prefix_length(rest, after[last.end() :] if last else "")]
        closing = inside.end()
        while found := re.match(r"\s", shared) or special.match(shared):
            closing, shared = closing + found.end(), shared[found.end() :]
        if last is None and inside[0] in first:  # an answer is closed by the opening of the next turn
            closing = inside.start()
        known = common_prefix_length(between[::-1], first[::-1])
        opening, begin = between[max(closing, len(between) - known) :], self.tokenizer.bos_token or ""
        if not special.sub("", first.removesuffix(opening)).strip():  # no system turn precedes it
            return first
        return begin + opening if first.startswith(begin) and not opening.startswith(begin) else opening

    def _literal(self, text: str, after_text: bool, before_text: bool) -> TemplateText:
        """The tokens of a template text in its place between the texts of the turns."""
        if before_text:
            ids = self._encoded(text + _PROBE, after_text)
            for left_context in self._left_contexts:
                probe = self._encoded(left_context.text + _PROBE)[left_context.n_tokens :]
                if ids[-len(probe) :] == probe:
                    return TemplateText(ids[: -len(probe)], left_context)
        return TemplateText(self._encoded(text, after_text), LeftContext())

    def _is_apart(self, one: str, other: str) -> bool:
        """Whether two texts that follow another have the same tokens separately as together."""
        return self._encoded(one, True) + self._encoded(other, True) == self._encoded(one + other, True)

    def _encoded(self, text: str, after_text: bool = False) -> tuple[int, ...]:
        def encode(text: str) -> tuple[int, ...]:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

        # SentencePiece adds a leading space to text that is tokenised alone, unless a line break precedes it.
        if after_text and self.tokenizer.tokenize(_PROBE)[0].startswith("▁"):
            ahead, whole = encode("\n"), encode(f"\n{text}")
            if whole[: len(ahead)] == ahead:
                return whole[len(ahead) :]
        return encode(text)


def answer_left_context(tokenizer: PreTrainedTokenizerBase) -> LeftContext:
    """The left context of the assistant's text; empty if tagging cannot use the template."""
    try:
        return ChatTemplate(tokenizer).before_assistant("a").left_context
    except UserError:
        return LeftContext()


def common_prefix_length(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> list[int]:
    """The conversation up to the beginning of the assistant's answer, as token ids.

    Only the template's own tokens are special: an end-of-turn token written in a turn stays text, as in training.

    Raises:
        UserError: the template rejects the turns.
    """
    named = match_any(control_tokens(tokenizer))
    said: list[str] = []

    def hidden(name: re.Match[str]) -> str:
        said.append(name[0])
        return f"inscpsentinel{len(said) - 1}name"

    hiding = [{**turn, "content": named.sub(hidden, turn["content"])} for turn in turns]
    text = render_prompt(tokenizer, hiding, "Prompt without a system turn, or with turns that the template accepts.")
    ids: list[int] = []
    for number, piece in enumerate(re.split(r"inscpsentinel(\d+)name", text)):
        if number % 2:
            ids += encode_plain(tokenizer, said[int(piece)], LeftContext())
        else:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids
