"""Prompting a model in training in several languages."""

from typing import ClassVar

from lightning import Callback
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.errors import require_some, within
from inscp.evaluation.answers import AlignmentScorer, without_reasoning
from inscp.evaluation.generation import generate
from inscp.evaluation.prompts import read_aligned_prompts
from inscp.records import Generation, Turn
from inscp.text.language import LID_176, LanguageIdentifier


class PromptingCallback(Callback):
    """Base of the callbacks that generate answers to prompts.

    Args:
        prompts: a JSONL file with one field a language, the same prompt in each; null asks nothing.
        languages: which of its fields to ask, as BCP 47 tags: the language that is taught first, then what is to be
            retained (`[zh-TW, en]`).
        max_prompts: ask only so many, spread evenly over the file.
        max_new_tokens: responses are cut there.
        lid_model: tells the languages, as of the task `LanguageAlignment`.

    Attributes:
        section: of the configuration that has its options.
        questions: language -> what is asked in it.
    """

    section: ClassVar[str]

    def __init__(
        self,
        prompts: str | None = None,
        languages: list[str] | None = None,
        max_prompts: int | None = None,
        max_new_tokens: int = 256,
        lid_model: str = LID_176,
    ) -> None:
        require_some(max_new_tokens, f"{self.section}.max_new_tokens")
        identifier = LanguageIdentifier(lid_model)
        with within(self.section):
            self.questions = read_aligned_prompts(prompts, languages or [], identifier, max_prompts) if prompts else {}
        self._scorer, self._max_new_tokens = AlignmentScorer(identifier), max_new_tokens

    def ask(
        self, language: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[Generation], dict[str, float]]:
        """The greedy answers to the prompts in a language, and their metrics (`AlignmentScorer.shares`)."""
        turns = [(Turn("user", prompt),) for prompt in self.questions[language]]
        found = sorted(generate(model, tokenizer, turns, self._max_new_tokens))
        answers = without_reasoning([answer for _, answer in found])
        return answers, self._scorer.shares(answers, language)
