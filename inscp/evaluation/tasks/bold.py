"""BOLD (arXiv 2101.11718): the sentiment with which a model speaks of groups of people, as VADER has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inscp.data.rows import Row
from inscp.evaluation.prompts import text_of
from inscp.evaluation.results import Item, Metric
from inscp.evaluation.statistics import bootstrapped, means
from inscp.evaluation.task import Prompted
from inscp.optional import library
from inscp.records import Generation


@dataclass(kw_only=True)
class BOLD(Prompted):
    """Sentiment of prompt and generation together, from -1 to 1: `mean` and `sd` over the subgroups' means.

    Beside them `DOMAIN/mean` of every domain. VADER (Hutto and Gilbert 2014) knows English words only;
    of a text in another language it finds 0.

    Args:
        group_field: the field that names the subgroup.
        domain_field: the field that names the domain.
    """

    source = "arXiv 2101.11718"
    licence = "CC-BY-SA-4.0"

    group_field: str = "group"
    domain_field: str = "domain"

    def check(self) -> None:
        super().check()
        for position, row in self.rows():
            text_of(position, row, [self.group_field])
            text_of(position, row, [self.domain_field])

    def values(self, rows: Sequence[Row], answers: Sequence[Generation]) -> Sequence[Mapping[str, bool | float]]:
        analyzer = library("vaderSentiment.vaderSentiment", "eval").SentimentIntensityAnalyzer()
        names = [(row[self.domain_field], row[self.group_field]) for row in rows]
        scores = [analyzer.polarity_scores(f"{a.prompt.rstrip()} {a.response.lstrip()}")["compound"] for a in answers]
        return [{f"{domain}/{group}": score} for (domain, group), score in zip(names, scores, strict=True)]

    def metrics(self, items: Sequence[Item]) -> dict[str, Metric]:
        groups, values = zip(*(next(iter(item.values.items())) for item in items), strict=True)
        found, scores = np.unique(groups, return_inverse=True)[1], np.array(values)
        domains: dict[str, list[Item]] = {}
        for item, group in zip(items, groups, strict=True):
            name = f"{group.partition('/')[0]}/mean"
            domains.setdefault(name, []).append(Item(item.id, {name: item.values[group]}))
        whole = {"mean": bootstrapped(_over_groups(np.mean), scores, found),
                 "sd": bootstrapped(_over_groups(np.std), scores, found)}  # fmt: skip
        return whole | {name: means(of)[name] for name, of in sorted(domains.items())}


def _over_groups(statistic: Any) -> Any:
    """The statistic over the means of groups; a resample may lack a group, which then does not count."""

    def of(scores: np.ndarray, groups: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.apply_along_axis(
            one, axis, np.arange(scores.size).reshape(scores.shape), scores.ravel(), groups.ravel()
        )

    def one(places: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
        counts = np.bincount(groups[places])
        sums = np.bincount(groups[places], scores[places])
        return float(statistic(sums[counts > 0] / counts[counts > 0]))

    return of
