"""Prompting a model in several languages during training."""

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
        prompts: JSONL file with one field per language, the same prompt in each; null disables prompting.
        languages: fields of the file to use, as BCP 47 tags: the target language first, then the languages to preserve
            (`[zh-TW, en]`).
        max_prompts: maximum number of prompts, spread evenly over the file.
        max_new_tokens: maximum tokens per answer; longer ones are cut off.
        lid_model: language identification model, as for the task `LanguageAlignment`.

    Attributes:
        section: section of the configuration with its options.
        questions: language -> prompts in it.
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
