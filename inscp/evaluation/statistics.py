"""From items to metrics with intervals."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from inscp.evaluation.items import Item
from inscp.evaluation.results import Metric
from inscp.optional import library

_RESAMPLES = 2000
Statistic = Callable[..., Any]


def means(items: Iterable[Item]) -> dict[str, Metric]:
    """Every metric that the items have: of bools the share (Wilson), of numbers the mean (bootstrap)."""
    values: dict[str, list[bool | float]] = {}
    weights: dict[str, list[float]] = {}
    for item in items:
        for name, value in item.values.items():
            values.setdefault(name, []).append(value)
            weights.setdefault(name, []).append(item.weights.get(name, 1.0))
    return {name: _mean(found, weights[name]) for name, found in values.items()}


def perplexity(loss: Metric) -> Metric:
    """Of a mean loss in nats a token."""
    low, high = map(math.exp, loss.interval)
    return Metric(math.exp(loss.value), (low, high), loss.n)


def with_perplexities(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """With `X/perplexity` for every `X/loss`."""
    found = {name.replace("/loss", "/perplexity"): perplexity(of) for name, of in metrics.items()
             if name.endswith("/loss")}  # fmt: skip
    return {**metrics, **found}


def _mean(values: Sequence[bool | float], weights: Sequence[float]) -> Metric:
    if all(isinstance(value, bool) for value in values):
        total = sum(weights)
        share = sum(weight for value, weight in zip(values, weights, strict=True) if value) / total
        return Metric(share, wilson(share, effective(np.asarray(weights))), len(values))
    return _mean_of_numbers(np.asarray([values], dtype=np.float64), np.asarray([weights]))


def _mean_of_numbers(values: np.ndarray, weights: np.ndarray) -> Metric:
    """With an interval by the bootstrap's standard error (Efron 1979).

    It is t times that, of n - 1 degrees of freedom: percentiles of few items hold the truth less often than they say.
    """
    n = values.shape[1]
    value = float(weighted_means(values, weights, np.ones((1, n)))[0, 0])
    if n < 2:
        return Metric(value, (math.nan, math.nan), n)
    error = math.sqrt(items_variance(weighted_means(values, weights, drawn(n)), n))
    half_width = float(scipy_stats().t.ppf(0.975, n - 1)) * error
    return Metric(value, within(values, value - half_width, value + half_width), n)


def within(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The interval of a mean inside what it can be: where no value is below 0, or all are between 0 and 1."""
    if (values < 0).any():
        return low, high
    return max(0.0, low), high if (values > 1).any() else min(1.0, high)


@lru_cache(maxsize=2)  # every metric of a task has as many items
def drawn(n: int) -> np.ndarray:
    """float64 [R, n]: how often each of n items is drawn in each of R resamples, always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(np.float64)


def weighted_means(values: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [R, S]: the mean over the items, as often as they count; NaN where none has a weight.

    Args:
        values, weights: [S, n].
        counts: [R, n].
    """
    weighed = counts @ weights.T
    return np.divide(counts @ (values * weights).T, weighed, where=weighed > 0, out=np.full_like(weighed, np.nan))


def items_variance(resampled: np.ndarray, n: int) -> float:
    """Of a mean of n items, by its values when they are drawn again, which vary by (n - 1) / n of that."""
    return float(np.nanvar(resampled)) * n / (n - 1)


def over_groups(statistic: Statistic, groups: Sequence[Sequence[float]]) -> Metric:
    """A statistic of the groups' means; the bootstrap draws within each group, so that small ones never drop out.

    Args:
        statistic: of an array along `axis`.
        groups: the values of each.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.choice(np.asarray(group), (_RESAMPLES, len(group))).mean(-1) for group in groups]
    low, high = np.percentile(statistic(np.stack(drawn), axis=0), (2.5, 97.5))
    value = float(statistic(np.array([np.mean(group) for group in groups]), axis=0))
    return Metric(value, (float(low), float(high)), sum(map(len, groups)))


def scipy_stats() -> Any:
    """scipy's distributions and tests, imported when they are needed."""
    return library("scipy.stats", "eval")


def effective(weights: np.ndarray) -> float:
    """So many items of one weight say as much as those of these weights (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def most_of_none(n: float) -> float:
    """The upper end of the exact 95 % interval (Clopper-Pearson) of a share that 0 of n items have.

    A bootstrap would draw nothing but zeros.
    """
    return float(1 - 0.025 ** (1 / n))


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of `lost` against `won` among items on which two models differ."""
    return float(scipy_stats().binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of n (Wilson 1927, JASA 22), which stays inside [0, 1] for small n."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n**2))) ** 0.5 / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
