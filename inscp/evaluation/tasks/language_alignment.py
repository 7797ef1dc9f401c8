"""Language alignment (the paper's Table 1): does a model answer in the prompt's language, and is it an answer at all?

Counting the languages of the responses flatters a small model: one that echoes the prompt, or repeats one phrase for
ever, counts as aligned. So beside the language stand the shares of responses that end their turn, loop, copy the prompt
and are empty, and the alignment of the sound ones alone.
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
    """Asks the same prompts in several languages and tells in which languages the answers are.

    Of each language L, over its prompts: `L/answered_in/X` (by fastText, but Chinese without kana is not taken for
    Japanese; where X names a form of Chinese, as zh-TW does, by the characters too: the paper takes either form),
    `L/in_language` (X is L), `L/in_script` (Traditional or Simplified, of Chinese answers), `L/ended`, `L/looped`,
    `L/copied`, `L/empty`, `L/sound` (none of these three), `L/sound_in_language` (both, of all answers),
    `L/in_language_if_sound` (of the sound answers alone, however few), `L/words` (how many an answer has, on average: a
    sound one may be a single number), and as the Language Confusion Benchmark (arXiv 2406.20052) has them
    `L/line_pass` (every line of five words and more is in the language) and `L/word_pass` (of those, no English word in
    other scripts); a character counts as a word where no spaces are.

    Args:
        prompts: a file with one field a language, the same prompt in each.
        languages: which of its fields to ask, as BCP 47 tags (`en`, `zh-TW`).
        limit: ask so many, spread evenly over the file.
        max_new_tokens: responses are cut there.
        lid_model: tells the languages: `lid.176`, or another one as `LanguageIdentifier` takes it.
    """

    version = 6  # characters that were cut; no language where fastText knows no part of a text
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
            answers = model.generate(f"asking in {language}", turns, self.max_new_tokens)
            items += [scorer.item(answer, language, self.languages) for answer in answers]
        return items

    def _asked(self) -> dict[str, list[str]]:
        return read_aligned_prompts(self.prompts, self.languages, LanguageIdentifier(self.lid_model), self.limit)
