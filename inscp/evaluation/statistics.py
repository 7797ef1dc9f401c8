"""Metrics with intervals, computed from items."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from inscp.evaluation.items import Item
from inscp.evaluation.results import Metric
from inscp.optional import library

_HELD_OUT, _LOSS, _PERPLEXITY = "held_out/", "/loss", "/perplexity"


def means(items: Iterable[Item]) -> dict[str, Metric]:
    """Every metric of the items: the fraction of bools (Wilson interval), the mean of numbers (Student's t).

    Every `held_out/SET/loss`, in nats per token, also gives a `held_out/SET/perplexity`.
    """
    values: dict[str, list[bool | float]] = {}
    weights: dict[str, list[float]] = {}
    for item in items:
        for name, value in item.values.items():
            values.setdefault(name, []).append(value)
            weights.setdefault(name, []).append(item.weights.get(name, 1.0))
    found = {name: _mean(of, weights[name]) for name, of in values.items()}
    losses = [name for name in found if is_loss(name)]
    return found | {perplexity_of(name): perplexity(found[name]) for name in losses}


def is_loss(metric: str) -> bool:
    """Whether a metric is the loss of a held-out set, which is a mean over tokens."""
    return metric.startswith(_HELD_OUT) and metric.endswith(_LOSS)


def perplexity_of(loss: str) -> str:
    """The name of a loss's perplexity."""
    return loss.removesuffix(_LOSS) + _PERPLEXITY


def loss_of(metric: str) -> str | None:
    """The name of the loss that belongs to a perplexity; None for any other metric."""
    if metric.startswith(_HELD_OUT) and metric.endswith(_PERPLEXITY):
        return metric.removesuffix(_PERPLEXITY) + _LOSS
    return None


def perplexity(loss: Metric) -> Metric:
    """The perplexity of a mean loss in nats per token."""
    low, high = map(math.exp, loss.interval)
    return Metric(math.exp(loss.value), (low, high), loss.n)


def _mean(values: Sequence[bool | float], weights: Sequence[float]) -> Metric:
    if all(isinstance(value, bool) for value in values):
        total = sum(weights)
        share = sum(weight for value, weight in zip(values, weights, strict=True) if value) / total
        return Metric(share, wilson(share, effective_sample_size(np.asarray(weights))), len(values))
    return _mean_of_numbers(*(np.asarray([of], dtype=np.float64) for of in (values, weights)))


def _mean_of_numbers(values: np.ndarray, weights: np.ndarray) -> Metric:
    """The mean, with an interval of t times the standard error, with n - 1 degrees of freedom."""
    n = values.shape[1]
    found, influences = linearised(values, weights)
    value = float(found[0])
    if n < 2:
        return Metric(value, (math.nan, math.nan), n)
    half_width = float(scipy_stats().t.ppf(0.975, n - 1)) * math.sqrt(items_variance(influences[0], n))
    return Metric(value, clipped_to_range(values, value - half_width, value + half_width), n)


def clipped_to_range(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The interval of a mean, clipped to 0 and above or to [0, 1] if all values are in that range."""
    if (values < 0).any():
        return low, high
    return max(0.0, low), high if (values > 1).any() else min(1.0, high)


def linearised(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means over items, and the influence of each item on them; NaN if no item has a weight.

    Args:
        values, weights: [S, n].

    Returns:
        float64 [S], and [S, n]: weight x (value - mean) / sum of the weights.
    """
    total = weights.sum(1, keepdims=True)
    total[total == 0] = np.nan
    means = (weights * values).sum(1, keepdims=True) / total
    return means[:, 0], weights * (values - means) / total


def items_variance(influences: np.ndarray, n: int) -> float:
    """The variance of a weighted mean of n items, linearised (the delta method: Särndal, Swensson and Wretman 1992).

    Args:
        influences: of all items; they add up to 0.
        n: number of items with a weight.
    """
    return float((influences**2).sum()) * n / (n - 1)


def sd_of_means(groups: Sequence[Sequence[float]]) -> Metric:
    """The standard deviation of the groups' means, with a 95 % interval for that of their true means.

    The variance has an interval by the delta method, with the contribution of chance subtracted from its lower end.
    With 2, 5 or 40 items per group it covers the truth in at least 94 of 100 cases, by simulation.

    Args:
        groups: the values of each group; the interval is NaN if a group has a single value, or there is only one group.
    """
    n, n_groups = sum(map(len, groups)), len(groups)
    means = np.array([np.mean(group) for group in groups])
    variance = float(means.var())
    if n_groups < 2 or min(map(len, groups)) < 2:
        return Metric(math.sqrt(variance), (math.nan, math.nan), n)
    of_means = np.array([np.var(group, ddof=1) / len(group) for group in groups])
    by_chance = float(of_means.mean()) * (n_groups - 1) / n_groups
    error = 2 / n_groups * math.sqrt(float(((means - means.mean()) ** 2 * of_means).sum()))
    half_width = float(scipy_stats().t.ppf(0.975, n - n_groups)) * error
    low, high = max(0.0, variance - half_width - by_chance), variance + half_width
    return Metric(math.sqrt(variance), (math.sqrt(low), math.sqrt(high)), n)


def scipy_stats() -> Any:
    """scipy's distributions and tests, imported on first use."""
    return library("scipy.stats", "eval")


def effective_sample_size(weights: np.ndarray) -> float:
    """The effective sample size of weighted items (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def zero_share_upper_bound(n: float) -> float:
    """The upper end of the exact 95 % interval (Clopper-Pearson) of a fraction that is 0 of n items.

    Their variance is 0, which says nothing about the uncertainty.
    """
    return float(1 - 0.025 ** (1 / n))


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value of `lost` against `won` among items on which two models differ."""
    return float(scipy_stats().binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a fraction of n (Wilson 1927, JASA 22), which stays inside [0, 1] for small n."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n**2))) ** 0.5 / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
