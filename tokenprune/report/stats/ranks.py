"""Rank statistics: how stable the order of the pruners is over seeds, and how well two figures order alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenprune.report.stats.scores import Scores

RESAMPLES = 999
"""Draws of the interval of a rank correlation."""
MINIMUM = 4
"""Fewer points say nothing about an order."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """One pruner with several seeds: accuracy and rank in the table, lowest and highest over the seeds."""

    label: str
    accuracy: tuple[float, float]
    ranks: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stability:
    """Rank stability at one budget.

    Args:
        seeds: Number of seeds.
        seeded: The pruners that depend on the seed.
        kendall_w: Agreement of the seeds on the order of those pruners, from 0 (none) to 1; `None` if not defined.
        reason: Why it is not defined.
        left_out: Pruners that are in none of these tables because some of their seeds have no result, in words.
    """

    seeds: int
    seeded: tuple[Seeded, ...]
    kendall_w: float | None
    reason: str = ""
    left_out: tuple[str, ...] = ()


def rank_stability(scores: Mapping[str, Scores], planned: Mapping[str, int]) -> Stability | None:
    """Compare the tables that each seed alone would have given; a pruner without seeds is the same in all of them.

    Args:
        scores: Pruners of one table by label.
        planned: Cells of each pruner, one per seed; a pruner that lacks some of them is left out.

    Returns:
        `None` if no pruner ran with several seeds.
    """
    from scipy.stats import rankdata

    left_out = tuple(
        f"{label} is left out: {len(found.seeds)} of {planned[label]} seeds have a result"
        for label, found in scores.items()
        if len(found.seeds) < planned[label]
    )
    scores = {label: found for label, found in scores.items() if len(found.seeds) >= planned[label]}
    most = max((len(found.seeds) for found in scores.values()), default=0)
    seeded = [place for place, found in enumerate(scores.values()) if len(found.seeds) > 1]
    if not seeded:
        return None
    means = [np.broadcast_to(found.by_seed.mean(axis=1), most) for found in scores.values()]
    table = np.array(means).round(9)  # (pruners, seeds); equal answers have means that differ in their last bits
    ranks = np.asarray(rankdata(-table, method="min", axis=0))  # equal accuracies share a rank
    labels = list(scores)
    rows = tuple(
        Seeded(
            labels[place],
            (float(table[place].min()), float(table[place].max())),
            (int(ranks[place].min()), int(ranks[place].max())),
        )
        for place in seeded
    )
    if len(seeded) < 2:
        return Stability(most, rows, None, "only one pruner depends on the seed", left_out)
    agreement = kendall_w(table[seeded].T.tolist())
    reason = "" if agreement is not None else "every seed ties all of them"
    return Stability(most, rows, agreement, reason, left_out)


def kendall_w(judgements: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance with the correction for ties (Kendall and Babington Smith 1939).

    Args:
        judgements: One row per judge, one number per item.

    Returns:
        1 if all judges order alike, 0 if the rank sums are equal; `None` if every judge ties all items.
    """
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(np.asarray(judgements, dtype=np.float64), axis=1))
    ranks -= ranks.mean(axis=1, keepdims=True)
    most = len(ranks) * float((ranks**2).sum())  # what the squared rank sums are if all judges order alike
    return float((ranks.sum(axis=0) ** 2).sum()) / most if most > 0.0 else None


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's and Kendall's rank correlation of n points.

    Args:
        points: n.
        spearman: Rank correlation, or `None` if there are too few points or one side is constant.
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
    """Pearson's correlation of the ranks (ties share their mean rank); `None` if one side is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(np.stack([x, y]), axis=1)
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=1).all() else None
