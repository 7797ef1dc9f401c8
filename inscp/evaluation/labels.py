"""Labels of metrics for tables and plots; results, goals and trackers use the metrics' names."""

import re
from dataclasses import dataclass

LABELS = {
    "in_language": "in the prompt's language",
    "in_script": "in the prompt's script",
    "ended": "end their turn",
    "looped": "repeat themselves",
    "copied": "copy the prompt",
    "sound": "well-formed",
    "sound_in_language": "well-formed, in the language",
    "in_language_if_sound": "in the language, of well-formed",
    "answered_in/other": "in none of the languages",
    "words": "words per answer",
    "line_pass": "every line in the language",
    "word_pass": "no stray English words",
    "score_in_language": "score, 1 if in another language",
    "score/turn_1": "score of the first turn",
    "score/turn_2": "score of the second turn",
    "pairwise/win": "won",
    "pairwise/tie": "tied",
    "pairwise/loss": "lost",
    "pairwise/consistent": "same verdict in either order",
    "unparsed": "judgement unreadable",
    "bits_per_byte": "bits per byte",
    "kl": "KL divergence from original, nats/token",
    "agreement": "tokens before the first difference",
    "same_answer": "same answer as the original",
}
"""Name -> label; the label of any other metric is its name."""


@dataclass(frozen=True)
class _Rule:
    """Which metrics of a kind of task (any, if empty) belong in a table, and their heads; the first match applies."""

    title: str
    kind: str
    pattern: str
    label: str


_RULES = (
    _Rule("Language alignment (Table 1)", "LanguageAlignment", r"(?P<p>[^/]+)/answered_in/(?P<a>(?!other$).+)",
            "{p} prompt: {a}"),
    _Rule("What the answers are like", "LanguageAlignment", r"(?P<p>[^/]+)/(?P<m>.+)", "{p}: {m}"),
    _Rule("Reliability (Table 2)", "Knowledge", r"(?P<m>mc[12])", "{task} {m}"),
    _Rule("Reliability (Table 2)", "ToxiGen", r"(?P<m>toxic|failed)", "{task}: {m}"),
    _Rule("Reliability (Table 2)", "BOLD", r"(?P<m>mean|sd)", "{task}: sentiment, {m}"),
    _Rule("Refusals", "Refusals", r"(?P<p>[^/]+)/(?P<m>.+)", "{p}: {m}"),
    _Rule("Knowledge (Table 3)", "Knowledge", r"(?P<m>acc|acc_norm|exact_match\S*)", "{task} {m}"),
    _Rule("MT-Bench (Tables 4 and 5)", "MTBench",
            r"(?P<m>score|score_in_language|score/turn_[12]|in_language|pairwise/.+|unparsed)", "{task}: {m}"),
    _Rule("Retention", "Retention", r"held_out/(?P<p>[^/]+)/(?P<m>perplexity|bits_per_byte)", "{p}: {m}"),
    _Rule("Retention", "Retention", r"(?P<m>kl|agreement|same_answer)", "{m}"),
    _Rule("Retention", "Retention", r"held_out/(?P<p>[^/]+)/(?P<m>loss)", "{p}: {m}"),
    _Rule("By part", "", r"(?P<m>.+)", "{task}: {m}"),
)  # fmt: skip

TITLES = tuple(dict.fromkeys(rule.title for rule in _RULES))
"""Titles of the tables in order: the paper's five, and additional ones."""


def heading(task: str, kind: str, metric: str) -> tuple[str, str]:
    """The title of a metric's table, and the head of its column.

    Args:
        task: name of the task.
        kind: class name of the task.
        metric: name of the metric.
    """
    for rule in _RULES:
        found = re.fullmatch(rule.pattern, metric)
        if found and rule.kind in ("", kind):
            parts = {name: LABELS.get(part, part) if name == "m" else part for name, part in found.groupdict().items()}
            return rule.title, rule.label.format(task=task, **parts)
    raise AssertionError(metric)  # the last rule matches everything


def label(kind: str, metric: str) -> str:
    """The head of a metric's column without the task's name."""
    return heading("", kind, metric)[1].lstrip(": ")
