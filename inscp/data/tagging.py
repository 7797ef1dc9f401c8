"""Tagging, the training method: a record becomes tagged text.

`InsCPTagger` puts target-language text into the model's own chat template as if the assistant had said it after an
empty user turn (InstructionCP, arXiv 2405.20175, section 3); `PlainTagger` is plain continual pre-training, the
paper's orgCP; `ConversationTagger` is supervised fine-tuning on the conversation as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal
from zlib import crc32

from transformers import PreTrainedTokenizerBase

from inscp.data.special_tokens import special_ids
from inscp.data.template import SYSTEM_FROM_TEMPLATE, ChatTemplate, TemplateText
from inscp.errors import UserError
from inscp.paths import local_path
from inscp.records import LeftContext, Record, Role, TaggedText, TemplateIds, TextSpan

Tag = Callable[[Record], list[TaggedText]]
Loss = Literal["all", "response"]
Pairs = Literal["split", "join"]


class Tagger(ABC):
    """How a record becomes training documents."""

    arm: str
    """The name of the method in comparisons."""

    @abstractmethod
    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Tag:
        """The tagging function for one tokenizer."""


def _enclose(prefixes: Sequence[TemplateText], is_target: bool, suffix: TemplateIds, pairs: Pairs) -> Tag:
    """Put each of a record's texts between a prefix and `suffix`: turn by turn (section 4.1), or all turns as one.

    A hash of the text chooses its prefix, so that the choice does not depend on order or process.
    """
    starts = [(TemplateIds(prefix.ids, is_target), prefix.left_context) for prefix in prefixes]

    def tag(record: Record) -> list[TaggedText]:
        texts = [turn.text for turn in record.turns if turn.role != "system"]
        if not texts:
            raise UserError(record.source, "it has only a system turn", "Remove it.")
        if pairs == "join":
            texts = ["\n\n".join(texts)]
        drawn = [starts[crc32(text.encode()) % len(starts)] for text in texts]
        return [
            TaggedText(record.source, (start, TextSpan(text, True, left_context), suffix))
            for (start, left_context), text in zip(drawn, texts, strict=True)
        ]

    return tag


@dataclass(frozen=True)
class InsCPTagger(Tagger):
    """Text as the assistant's turn, after a user turn that is empty or a generic prompt in the target language.

    With an empty user turn a small model learns to answer every prompt in the target language; with a generic prompt in
    that language it learns to answer in the language of the prompt.

    Args:
        loss: tokens that the loss is computed on: `all`, template included (eq. 2 of the paper), or `response`, the
            text and the end-of-turn token.
        pairs: how to handle instruction–response pairs: `split` makes two documents, the instruction and the
            response, each as an assistant turn (the paper); `join` makes one text of both.
        system: system turn: `template` (the template's default, if any), `none`, or its text.
        user: user turn: empty (the paper), or a generic prompt that any text may answer (“Write something.”, in the
            target language); with a list of several, each text gets one of them. A text file has one prompt per line;
            `samples:requests/fi.txt` is included in the package.
    """

    loss: Loss = "all"
    pairs: Pairs = "split"
    system: str = SYSTEM_FROM_TEMPLATE
    user: str | list[str] = ""
    arm = "InsCP"

    def __post_init__(self) -> None:
        if isinstance(self.user, str) and (self.user.endswith(".txt") or _is_file(self.user)):
            # The file's contents, not its name, enter the fingerprint.
            object.__setattr__(self, "user", _lines(self.user))

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Tag:
        template = ChatTemplate(tokenizer, self.system)
        requests = [self.user] if isinstance(self.user, str) else self.user
        if not requests:
            raise UserError("data.tagger.user", "there is no prompt", "Give at least one, or remove the key.")
        prefixes = [template.before_assistant(said) for said in requests]
        suffix = TemplateIds(template.after_assistant, is_target=True)

        return _enclose(prefixes, self.loss == "all", suffix, self.pairs)


def _is_file(request: str) -> bool:
    try:
        return local_path(request).is_file()
    except OSError:  # too long for a file name
        return False


def _lines(name: str) -> list[str]:
    try:
        lines = local_path(name).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("data.tagger.user", f"{name} cannot be read ({error})", "Name a text file.") from error
    return [line.strip() for line in lines if line.strip()]


_END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<EOS_TOKEN>", "[EOS]")
"""Spellings of the end-of-document token in tokenizers whose end-of-sequence token ends a turn instead."""


HELD_OUT = InsCPTagger(loss="response")
"""The default presentation of held-out text: as the model will be used, and the same for every arm."""


@dataclass(frozen=True)
class PlainTagger(Tagger):
    """Text and the end-of-document token, no tags: plain continual pre-training.

    Args:
        pairs: how to handle instruction–response pairs, as in `InsCPTagger`, so that the arms see the same documents.
        end_of_document: token that ends a document; by default the one that the base model was pre-trained with.
    """

    pairs: Pairs = "split"
    end_of_document: str | None = None
    arm = "orgCP"

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Tag:
        # The begin-of-sequence token, if the tokenizer itself puts one before a text.
        begin: tuple[int, ...] = ()
        if tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            begin = (tokenizer.bos_token_id,)
        suffix = TemplateIds((self._end(tokenizer),), is_target=True)

        return _enclose([TemplateText(begin, LeftContext())], True, suffix, self.pairs)

    def _end(self, tokenizer: PreTrainedTokenizerBase) -> int:
        vocabulary = tokenizer.get_vocab()
        if self.end_of_document is not None:
            if self.end_of_document not in vocabulary:
                fix = "Name a token of the tokenizer, or remove the key."
                raise UserError("data.tagger.end_of_document", f"{self.end_of_document!r} is not a token", fix)
            return int(vocabulary[self.end_of_document])
        try:
            end_of_turn = ChatTemplate(tokenizer).end_of_turn_id
        except UserError:  # no template, or one that only the other taggers could not use
            end_of_turn = None
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id != end_of_turn:
            return int(tokenizer.eos_token_id)
        special = special_ids(tokenizer)
        known = (vocabulary[token] for token in _END_OF_DOCUMENT if vocabulary.get(token) in special - {end_of_turn})
        end = next(known, tokenizer.eos_token_id)
        if end is None:
            raise UserError("data.tagger.end_of_document", "the tokenizer has no end of sequence", "Name a token.")
        return int(end)


@dataclass(frozen=True)
class ConversationTagger(Tagger):
    """A conversation in its own turns: supervised fine-tuning.

    Args:
        loss: tokens that the loss is computed on: `response` (the assistant's texts and end-of-turn tokens) or `all`.
        system: system turn for records that have none of their own, as in `InsCPTagger`.
    """

    loss: Loss = "response"
    system: str = SYSTEM_FROM_TEMPLATE
    arm = "SFT"

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Tag:
        template = ChatTemplate(tokenizer, self.system)
        literals = cache(template.literals)

        def template_ids(ids: tuple[int, ...], after: Role | None) -> list[TemplateIds]:
            """The template's text between two turns; an answer's end-of-turn token belongs to the answer."""
            end = template.end_inside(ids) if after == "assistant" else 0
            return [TemplateIds(ids[:end], is_target=True), TemplateIds(ids[end:], is_target=self.loss == "all")]

        def tag(record: Record) -> list[TaggedText]:
            answers = [index for index, turn in enumerate(record.turns) if turn.role == "assistant"]
            if not answers:
                fix = "Use pairs or conversations, or InsCPTagger, which takes any text."
                raise UserError(record.source, "it has no assistant turn", fix)
            turns = record.turns[: answers[-1] + 1]
            around = literals(tuple(turn.role for turn in turns))
            parts: list[TemplateIds | TextSpan] = []
            previous: Role | None = None
            for turn, (before, after) in zip(turns, pairwise(around), strict=True):
                parts += template_ids(before.ids, after=previous)
                is_target = turn.role == "assistant" or self.loss == "all"
                parts.append(TextSpan(turn.text, is_target, before.left_context, after.joined))
                previous = turn.role
            parts.append(TemplateIds(template.after_assistant, is_target=True))
            return [TaggedText(record.source, tuple(parts))]

        return tag
