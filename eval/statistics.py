"""Means with confidence intervals where items of one cluster (a video) are alike, and paired differences.

A metric of a set of items is ``sum of values / sum of weights``: a plain mean has weights 1, a rate over turns the turns of
each item. Intervals are percentiles of a bootstrap that draws whole clusters with replacement (Cameron, Gelbach and
Miller 2008, "pairs cluster bootstrap"), the same draws for both sides of a difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from vtskip.errors import DataError

DRAWS = 2000
Items = Mapping[str, tuple[float, float]]  # item -> (value, weight)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; None where there are fewer than two clusters, or nothing to measure.

    items: those that weigh anything; clusters: how many clusters they are of.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    clusters: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    items: Items, clusters: Mapping[str, str], level: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """The metric over ``items``; ``clusters`` says which cluster an item is of."""
    table = _sums([items], clusters)
    values = _ratios(table[:, 0, 0].sum(), table[:, 0, 1].sum())
    used = [k for k, (_, weight) in items.items() if weight]
    low, high = _interval(table, level, seed, draws)
    return Estimate(_number(values), low, high, len(used), len({clusters[k] for k in used}))


def difference(
    ours: Items, theirs: Items, clusters: Mapping[str, str], level: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """Metric of ``ours`` less that of ``theirs``, over the same items. Raises DataError for other items."""
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise DataError(f"a paired difference needs the same items; {len(odd)} are on one side only, first {odd[0]!r}")
    table = _sums([ours, theirs], clusters)
    first, second = (_ratios(table[:, k, 0].sum(), table[:, k, 1].sum()) for k in (0, 1))
    used = [k for k in ours if ours[k][1] or theirs[k][1]]
    low, high = _interval(table, level, seed, draws)
    return Estimate(_number(first - second), low, high, len(used), len({clusters[k] for k in used}))


def _sums(sides: Sequence[Items], clusters: Mapping[str, str]) -> np.ndarray:
    """``[clusters, sides, 2]``: sums of values and weights. Clusters in which no side weighs anything are left out."""
    names = sorted({clusters[k] for k in sides[0]})
    row = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(sides), 2))
    for s, items in enumerate(sides):
        for key in sorted(items):  # another order of the same items must not change the last digit
            table[row[clusters[key]], s] += items[key]
    return table[table[:, :, 1].any(axis=1)]


def _interval(table: np.ndarray, level: float, seed: int, draws: int) -> tuple[float | None, float | None]:
    """Percentiles of the (difference of) ratios over draws of clusters."""
    count = len(table)
    if count < 2:
        return None, None
    sums = np.tensordot(_drawn(count, seed, draws), table, axes=1)
    ratios = _ratios(sums[..., 0], sums[..., 1])
    values = ratios[:, 0] if ratios.shape[1] == 1 else ratios[:, 0] - ratios[:, 1]
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _drawn(count: int, seed: int, draws: int) -> np.ndarray:
    """``[draws, count]``: how often each cluster is drawn; the same for every metric of a table."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _ratios(values: Any, weights: Any) -> np.ndarray:
    """NaN where nothing weighs anything."""
    values, weights = np.asarray(values, float), np.asarray(weights, float)
    return np.divide(values, weights, out=np.full_like(values, np.nan), where=weights > 0)


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None
