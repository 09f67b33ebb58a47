"""Paired comparisons of pruners on the same questions: the test, its correction, every pair, and every baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import TypeVar

import numpy as np

from tokenprune.report.stats.intervals import Clusters, Interval, Numbers, cluster_numbers
from tokenprune.report.stats.scores import Scores

Key = TypeVar("Key")

CONTROL = "random"
"""The pruner that others must beat."""

LEVEL = 0.05
"""Adjusted p-values below this are marked."""

FLIPS = 9999
"""Random sign flips of a test whose flips are too many to be listed."""
_LISTED = 13
"""Up to 2^13 sign flips are listed, not drawn."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first pruner minus the second one, in score, on the same questions.

    Args:
        questions: Number of questions.
        difference: Mean difference with its paired interval.
        p: P-value of "equally good" by itself.
        p_adjusted: The same, adjusted for all comparisons made with it (Holm).
    """

    first: str
    second: str
    questions: int
    difference: Interval
    p: float
    p_adjusted: float

    @property
    def significant(self) -> bool:
        """Whether the two differ, all comparisons made together considered."""
        return self.p_adjusted < LEVEL

    def turned(self) -> Comparison:
        """The second pruner minus the first one."""
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        # 0.0 - 0.0 is 0.0, but -0.0 would be shown with its sign
        back = Interval(0.0 - mean, None if high is None else 0.0 - high, None if low is None else 0.0 - low)
        return replace(self, first=self.second, second=self.first, difference=back)


def sign_flip_p(differences: Numbers, clusters: Clusters, *, seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is 0": Fisher's paired randomisation test over pictures.

    If all differing pictures differ by the same amount (right or wrong answers, one question each), this is McNemar's
    exact test. Otherwise it is exact for up to 13 differing pictures, and from 9,999 random flips (with the observed
    one added) for more.

    Args:
        differences: Differences of the scores of the same questions.
        clusters: The picture of each question.
        seed: Seed of the random flips.

    Raises:
        ValueError: There are no differences, or the two differ in length.
    """
    place = cluster_numbers(clusters, differences)
    totals = np.bincount(place, weights=np.asarray(differences, dtype=np.float64))
    return _flipped(tuple(totals[totals != 0.0].tolist()), seed)


@lru_cache(maxsize=4096)  # the same comparison stands in several tables, in the report and on the screen
def _flipped(differing: tuple[float, ...], seed: int) -> float:
    """The p-value of the sums of the pictures that differ."""
    from scipy.stats import binomtest

    totals, count = np.array(differing), len(differing)
    if count == 0:
        return 1.0
    sizes, multiples = np.unique(np.abs(totals), return_counts=True)
    if len(sizes) == 1:
        return float(binomtest(int((totals > 0.0).sum()), count).pvalue)
    observed = abs(float(totals.sum())) - 1e-9 * float(np.abs(totals).sum())
    if count <= _LISTED:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ totals) >= observed).mean())
    random, flipped = np.random.default_rng(seed), np.zeros(FLIPS)
    for size, multiple in zip(sizes, multiples, strict=True):
        flipped += size * (2 * random.binomial(multiple, 0.5, size=FLIPS) - multiple)
    return (int((np.abs(flipped) >= observed).sum()) + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): below 0.05 all together err with probability 0.05 at most."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def all_pairs(scores: Mapping[str, Scores]) -> tuple[Comparison, ...]:
    """Every pair of the pruners of one table, adjusted for the number of pairs; without those that never answered."""
    ran = {label: found for label, found in scores.items() if found.ever_answered().any()}
    pairs = {
        (first, second): _compare(first, ran[first], second, ran[second]) for first, second in combinations(ran, 2)
    }
    return tuple(_adjusted(pairs).values())


def against_baselines(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores]
) -> dict[tuple[str, str], Comparison]:
    """Every pruner against every baseline, adjusted for all of them together; keys are (pruner, baseline).

    Two baselines are compared with each other once. A pruner none of whose cells ran is not compared. Each comparison
    is on the questions that the baseline answered.
    """
    return {key[:2]: found for key, found in _against(scores, baselines, lambda found: {"": found}).items()}


def against_baselines_by_family(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores]
) -> dict[tuple[str, str, str], Comparison]:
    """The same within each task family, adjusted for all families together; keys are (pruner, baseline, family)."""
    return _against(scores, baselines, Scores.by_family)


def _against(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores], split: Callable[[Scores], Mapping[str, Scores]]
) -> dict[tuple[str, str, str], Comparison]:
    """Comparisons on each part of the questions that `split` makes."""
    made: dict[tuple[str, str, str], Comparison] = {}
    for label, ours in scores.items():
        for baseline, theirs in baselines.items():
            if label == baseline or not ours.ever_answered().any():
                continue
            first, second = map(split, ours.paired_with(theirs))
            for part, found in first.items():
                if (baseline, label, part) not in made and len(found.pictures):
                    made[label, baseline, part] = _compare(label, found, baseline, second[part])
    made = _adjusted(made)
    return made | {
        (second, first, part): found.turned() for (first, second, part), found in made.items() if first in baselines
    }


def _compare(first: str, ours: Scores, second: str, theirs: Scores) -> Comparison:
    """One comparison, not adjusted."""
    p = sign_flip_p(ours.values - theirs.values, ours.pictures)
    return Comparison(first, second, len(ours.pictures), ours.minus(theirs), p, p)


def _adjusted(comparisons: Mapping[Key, Comparison]) -> dict[Key, Comparison]:
    """The same comparisons, adjusted for their number."""
    values = holm([found.p for found in comparisons.values()])
    return {
        key: replace(found, p_adjusted=value) for (key, found), value in zip(comparisons.items(), values, strict=True)
    }
