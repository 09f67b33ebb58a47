"""Paired comparisons of scores on the same questions, with pictures as the unit of chance.

Several questions about one picture are not independent, so every resampling draws pictures, not questions. All draws
come from a fixed seed: the same scores give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9999
_BLOCK = 500
"""Resamples per block: bounds the memory to block x pictures."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(scores: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval; clusters are drawn with replacement.

    For paired comparisons give the differences of the scores of the same questions.

    Args:
        scores: One number per question.
        clusters: The picture of each question.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no scores, or the two differ in length.
    """
    totals, sizes = _by_cluster(scores, clusters)
    count = len(totals)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, _BLOCK):
        block = min(_BLOCK, RESAMPLES - start)
        weights = random.multinomial(count, np.full(count, 1.0 / count), size=block)
        means.append((weights @ totals) / (weights @ sizes))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(totals.sum() / sizes.sum()), float(low), float(high))


def sign_flip_p(differences: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is zero": pictures' signs are flipped at random.

    Exact where all flips can be listed (up to 2^13), otherwise from 9,999 random ones with the observed one added.
    """
    totals, _ = _by_cluster(differences, clusters)
    totals = totals[totals != 0.0]
    count = len(totals)
    if count == 0:
        return 1.0
    observed = abs(float(totals.sum()))
    tolerance = 1e-9 * float(np.abs(totals).sum())
    if count <= 13:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ totals) >= observed - tolerance).mean())
    random = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, RESAMPLES, _BLOCK):
        block = min(_BLOCK, RESAMPLES - start)
        signs = 1 - 2 * random.integers(0, 2, size=(block, count))
        extreme += int((np.abs(signs @ totals) >= observed - tolerance).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def adjust(p_values: Sequence[float]) -> list[float]:
    """P-values of one table, adjusted for its size (Benjamini and Hochberg 1995, false discovery rate)."""
    from scipy.stats import false_discovery_control

    return [float(value) for value in false_discovery_control(list(p_values))] if p_values else []


def _by_cluster(scores: Sequence[float], clusters: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of the scores and number of questions of each cluster."""
    if not len(scores) or len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} scores in {len(clusters)} clusters")
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    return (
        np.bincount(place, weights=np.asarray(scores, dtype=np.float64)).astype(np.float64),
        np.bincount(place).astype(np.float64),
    )
