"""Rank correlation of a figure with another over methods, with an interval that draws methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 999
MINIMUM = 4
"""Fewer points say nothing about an order."""


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's and Kendall's rank correlation of n points.

    Args:
        points: n.
        spearman: Rank correlation, or `None` where there are too few points or one side is constant.
        low: Lower end of its 95 % interval.
        high: Upper end.
        kendall: Kendall's tau-b.
        reason: Why there is none.
    """

    points: int
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    kendall: float | None = None
    reason: str = ""


def rank_correlation(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], *, seed: int = 0
) -> RankCorrelation:
    """Rank correlation with its percentile bootstrap interval; clusters are drawn with replacement.

    Args:
        first: One number per point.
        second: One number per point.
        clusters: What the points belong to (points of one method at several budgets are not independent).
        seed: Seed of the draws: the same numbers give the same interval.

    Raises:
        ValueError: The lengths differ.
    """
    from scipy.stats import kendalltau

    if not len(first) == len(second) == len(clusters):
        raise ValueError(f"{len(first)}, {len(second)} and {len(clusters)} points")
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    count = len(x)
    if count < MINIMUM:
        return RankCorrelation(count, reason=f"{count} points are too few (at least {MINIMUM})")
    value = _spearman(x, y)
    if value is None:
        return RankCorrelation(count, reason="all values of one side are equal")
    names = np.asarray(clusters)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(clusters)]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        places = np.concatenate([members[place] for place in random.integers(len(members), size=len(members))])
        found = _spearman(x[places], y[places])
        if found is not None:  # a draw of one method over and over has no order
            drawn.append(found)
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (value, value)
    tau = float(kendalltau(x, y).statistic)
    return RankCorrelation(count, value, float(low), float(high), tau)


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Pearson's correlation of the ranks (ties share their mean rank); `None` where one side is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else None
