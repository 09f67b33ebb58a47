"""Statistics of scores on the same questions, with pictures as the unit of chance.

Several questions about one picture are not independent, so every resampling draws pictures, not questions. All draws
come from a fixed seed: the same scores give the same interval. Pictures with the same scores are drawn as one kind
with its multiplicity, which is the same distribution as drawing them one by one (what `scipy.stats.bootstrap` does)
at a cost that does not grow with the number of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.float64]
Clusters = Sequence[str] | NDArray[Any]
"""The picture of each question, by any name."""

RESAMPLES = 9999
_BLOCK = 2500
"""Resamples per block: bounds the memory to block x kinds of pictures."""
_LISTED = 13
"""Up to 2^13 sign flips are listed, not drawn."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(scores: Numbers, clusters: Clusters, *, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval; clusters are drawn with replacement.

    For paired comparisons give the differences of the scores of the same questions.

    Args:
        scores: One number per question.
        clusters: The picture of each question.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no scores, or the two differ in length.
    """
    return bootstrap_ratio(scores, [1.0] * len(scores), clusters, seed=seed)


def bootstrap_ratio(numerators: Numbers, denominators: Numbers, clusters: Clusters, *, seed: int = 0) -> Interval:
    """Ratio of two sums over the same questions with its percentile bootstrap interval; the two are drawn together.

    Draws whose denominator is 0 have no ratio and are left out of the interval.

    Args:
        numerators: One number per question.
        denominators: One number >= 0 per question.
        clusters: The picture of each question.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no questions, the three differ in length, or the denominators sum to 0.
    """
    above, below = _by_cluster(numerators, clusters), _by_cluster(denominators, clusters)
    if not below.sum() > 0.0:
        raise ValueError("a ratio needs a denominator above 0")
    kinds, counts = np.unique(np.stack([above, below], axis=1), axis=0, return_counts=True)
    low, high = _drawn(tuple(map(tuple, kinds.tolist())), tuple(counts.tolist()), seed)
    return Interval(float(above.sum() / below.sum()), low, high)


@lru_cache(maxsize=4096)  # two pruners on few questions have few distinct comparisons
def _drawn(kinds: tuple[tuple[float, float], ...], counts: tuple[int, ...], seed: int) -> tuple[float, float]:
    """The 95 % interval of a ratio of sums over clusters: how many there are of each (numerator, denominator)."""
    total = sum(counts)
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, RESAMPLES, _BLOCK):
        weights = random.multinomial(total, np.array(counts) / total, size=min(_BLOCK, RESAMPLES - start))
        sums = weights @ np.array(kinds)
        defined = sums[:, 1] > 0.0
        drawn.append(sums[defined, 0] / sums[defined, 1])
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def sign_flip_p(differences: Numbers, clusters: Clusters, *, seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is zero": a paired permutation test over pictures.

    Where all differing pictures differ by the same amount (right or wrong answers, one question each) this is
    McNemar's exact test. Otherwise it is exact where all flips can be listed (up to 2^13), and from 9,999 random flips
    with the observed one added where they cannot.

    Args:
        differences: Differences of the scores of the same questions.
        clusters: The picture of each question.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no differences, or the two differ in length.
    """
    totals = _by_cluster(differences, clusters)
    return _flipped(tuple(totals[totals != 0.0].tolist()), seed)


@lru_cache(maxsize=4096)  # the same comparison stands in several tables, and in the report and on the screen
def _flipped(differing: tuple[float, ...], seed: int) -> float:
    """The p-value of the sums of the pictures that differ."""
    from scipy.stats import binomtest

    totals = np.array(differing)
    count = len(totals)
    if count == 0:
        return 1.0
    sizes, multiples = np.unique(np.abs(totals), return_counts=True)
    if len(sizes) == 1:
        return float(binomtest(int((totals > 0.0).sum()), count).pvalue)
    observed = abs(float(totals.sum())) - 1e-9 * float(np.abs(totals).sum())
    if count <= _LISTED:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ totals) >= observed).mean())
    random = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, RESAMPLES, _BLOCK):
        positive = random.binomial(multiples, 0.5, size=(min(_BLOCK, RESAMPLES - start), len(sizes)))
        extreme += int((np.abs((2 * positive - multiples) @ sizes) >= observed).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): below 0.05 all together err with probability 0.05 at most."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def _by_cluster(scores: Numbers, clusters: Clusters) -> NDArray[np.float64]:
    """Sum of the scores of each cluster."""
    if not len(scores) or len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} scores in {len(clusters)} clusters")
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(place, weights=np.asarray(scores, dtype=np.float64)).astype(np.float64)
