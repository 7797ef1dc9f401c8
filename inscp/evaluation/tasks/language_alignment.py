"""Language alignment (the paper's Table 1): does a model answer in the prompt's language, and is the answer usable?

Counting the languages of the responses flatters a small model: one that echoes the prompt, or repeats one phrase
forever, counts as aligned. So the fractions of responses that end their turn, loop, copy the prompt or are empty are
reported as well, and the alignment of the well-formed ones alone.
"""

from dataclasses import dataclass

from inscp.evaluation.answers import ALIGNMENT_METRICS, AlignmentScorer
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.items import Item
from inscp.evaluation.prompts import read_aligned_prompts
from inscp.evaluation.task import Task
from inscp.records import Turn
from inscp.text.language import LID_176, LanguageIdentifier


@dataclass(kw_only=True)
class LanguageAlignment(Task):
    """Prompts in several languages, and the languages of the answers.

    For each language L, over its prompts: `L/answered_in/X` (by fastText, but text without kana counts as Chinese, not
    Japanese; if X names a form of Chinese, as zh-TW does, the characters must match too, while the paper accepts either
    form), `L/in_language` (X is L), `L/in_script` (Traditional or Simplified, of Chinese answers), `L/ended`,
    `L/looped`, `L/copied`, `L/empty`, `L/sound` (well-formed: none of these three), `L/sound_in_language` (well-formed
    and in the language, of all answers), `L/in_language_if_sound` (in the language, of the well-formed answers, however
    few), `L/words` (mean words per answer; a well-formed one may be a single number), and from the Language Confusion
    Benchmark (arXiv 2406.20052) `L/line_pass` (every line of at least five words is in the language) and `L/word_pass`
    (of those, no English word among other scripts). In scripts without spaces a character counts as a word.

    Args:
        prompts: file with one field per language, the same prompt in each.
        languages: fields of the file to use, as BCP 47 tags (`en`, `zh-TW`).
        limit: maximum number of prompts per language, spread evenly over the file.
        max_new_tokens: maximum tokens per response; longer ones are cut off.
        lid_model: language identification model: `lid.176`, or any other that `LanguageIdentifier` accepts.
    """

    version = 6  # truncated characters; no language if fastText recognises no part of a text
    source = "arXiv 2405.20175 (Table 1), arXiv 2406.20052"
    licence = "CC0-1.0"

    languages: list[str]
    prompts: str = "samples:zh_tw/aligned_prompts.jsonl"
    limit: int | None = None
    max_new_tokens: int = 256
    lid_model: str = LID_176

    @property
    def chats(self) -> bool:
        return True

    @property
    def by(self) -> str:
        return "" if self.lid_model == LID_176 else self.lid_model

    @property
    def item_metrics(self) -> list[str]:
        names = [*ALIGNMENT_METRICS, *(f"answered_in/{tag}" for tag in (*self.languages, "other"))]
        return [f"{language}/{name}" for language in self.languages for name in names]

    def check(self) -> None:
        self._asked()

    def items(self, model: CachingModel) -> list[Item]:
        scorer, items = AlignmentScorer(LanguageIdentifier(self.lid_model)), []
        for language, prompts in self._asked().items():
            turns = [(Turn("user", prompt),) for prompt in prompts]
            answers = model.generate(f"prompting in {language}", turns, self.max_new_tokens)
            items += [scorer.item(answer, language, self.languages) for answer in answers]
        return items

    def _asked(self) -> dict[str, list[str]]:
        return read_aligned_prompts(self.prompts, self.languages, LanguageIdentifier(self.lid_model), self.limit)
