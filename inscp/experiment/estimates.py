"""A metric over several seeds, and how it differs between two arms: intervals over seeds and items.

Both are drawn again (Efron and Tibshirani 1993, chapter 8): the seeds, and the items that all seeds and both arms were
asked. A mean over items is then a product of a matrix of counts with a matrix of values, for all resamples at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inscp.evaluation.results import Item, Metric
from inscp.evaluation.statistics import Difference
from inscp.records import wilson

_RESAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """One metric of one arm.

    Attributes:
        values, weights: float64 [seeds, items]; an item without the metric weighs 0.
        is_share: whether it counts something.
    """

    values: np.ndarray
    weights: np.ndarray
    is_share: bool


def samples(seeds: Sequence[Sequence[Sequence[Item]]], metric: str) -> list[Sample]:
    """One metric of several arms over the same items.

    Args:
        seeds: of each arm, of each of its seeds, the items.
        metric: its name.
    """
    tables = [[{item.id: item for item in items} for items in arm] for arm in seeds]
    ids = [id for id in tables[0][0] if all(id in table for arm in tables for table in arm)]
    return [_sample(arm, ids, metric) for arm in tables]


def _sample(seeds: Sequence[Mapping[str, Item]], ids: Sequence[str], metric: str) -> Sample:
    found = [[table[id].values.get(metric) for id in ids] for table in seeds]
    weights = [[table[id].weights.get(metric, 1.0) * (metric in table[id].values) for id in ids] for table in seeds]
    is_share = all(isinstance(value, bool) for row in found for value in row if value is not None)
    values = np.array([[float(value or 0.0) for value in row] for row in found])
    return Sample(values, np.array(weights, dtype=np.float64), is_share)


def mean(sample: Sample) -> Metric:
    """Over items and seeds, with a 95 % interval; of a share never narrower than one seed's items would give."""
    value = float(_means(sample, np.ones((1, sample.values.shape[1])), None)[0])
    n = int((sample.weights > 0).any(0).sum())
    if n < 2:
        return Metric(value, (math.nan, math.nan), n)
    low, high = _interval(_resampled([sample])[0])
    if sample.is_share:  # of which all or none are drawn alike, as if that were certain
        least, most = wilson(value, n)
        low, high = min(low, least), max(high, most)
    return Metric(value, (low, high), n)


def difference(before: Sample, after: Sample) -> Difference:
    """How a metric changes between two arms, paired by item, and by seed where both have as many."""
    ones = np.ones((1, before.values.shape[1]))
    one, other = (float(_means(sample, ones, None)[0]) for sample in (before, after))
    n = int(((before.weights > 0).any(0) & (after.weights > 0).any(0)).sum())
    if n < 2:
        return Difference(one, other, Metric(other - one, (math.nan, math.nan), n), math.nan)
    drawn = _resampled([before, after])
    changes = drawn[1] - drawn[0]
    tails = min(np.sum(changes <= 0), np.sum(changes >= 0))
    p = min(1.0, 2 * (1 + float(tails)) / (len(changes) + 1))
    return Difference(one, other, Metric(other - one, _interval(changes), n), p)


def _resampled(arms: Sequence[Sample]) -> list[np.ndarray]:
    """The mean of each arm in each resample; the same items in all, and the same seeds where there are as many."""
    rng = np.random.default_rng(0)
    n_items = arms[0].values.shape[1]
    counts = rng.multinomial(n_items, np.full(n_items, 1 / n_items), _RESAMPLES).astype(np.float64)
    n_seeds = {len(arm.values) for arm in arms}
    drawn = {n: rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(np.float64) for n in sorted(n_seeds)}
    return [_means(arm, counts, drawn[len(arm.values)]) for arm in arms]


def _means(sample: Sample, counts: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
    """float64 [R]: the mean over seeds of the weighted means over items.

    Args:
        sample: S seeds, n items.
        counts: [R, n]; how often each item was drawn.
        seeds: [R, S]; how often each seed was; None takes each once.
    """
    weighed = counts @ sample.weights.T
    of_seeds = np.divide(counts @ (sample.values * sample.weights).T, weighed, where=weighed > 0,
                         out=np.full_like(weighed, np.nan))  # fmt: skip
    times = np.where(np.isnan(of_seeds), 0.0, 1.0 if seeds is None else seeds)
    total = times.sum(1)
    return np.divide(np.nansum(of_seeds * times, axis=1), total, where=total > 0, out=np.full(len(total), np.nan))


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    if np.isnan(drawn).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(low), float(high)
