"""95 % intervals of means, differences and ratios of scores on the same questions.

Questions about one picture depend on each other, so the picture is the sampling unit (the *cluster*). Each interval is
a standard one on the effective sample size: the number of questions divided by their design effect (Kish 1965). Where
many answers differ, all three are the usual intervals with clustered standard errors (Miller 2024, "Adding error bars
to evals", arXiv 2411.00640); their adjustments matter near 0 and 100 %, where a plain standard error is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.float64]
Clusters = Sequence[str] | NDArray[Any]
"""The picture of each question, by any name."""

FEWEST = 5
"""Pictures that an interval needs; fewer do not show how much pictures differ."""

_NORMAL = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
_NOTHING = 1e-12
"""A variance below it is one of rounding."""


def rounded(value: float) -> float:
    """A value as it is compared with others: means of equal answers over several seeds differ in their last bits."""
    return round(value, 9)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval.

    Args:
        mean: The estimate.
        low: Lower bound; `None` (and `high`, too) if there are fewer than five pictures.
        high: Upper bound.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both bounds, or `None`."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def score_interval(scores: Numbers, clusters: Clusters) -> Interval:
    """Mean of scores from 0 to 1 with Wilson's interval (1927) on the effective sample size.

    Complex samples take the design effect and Student's quantile of their clusters (Dean and Pagano 2015). Scores that
    vary less than right-or-wrong answers, such as means over seeds, count as more answers.

    Args:
        scores: One number from 0 to 1 per question.
        clusters: The picture of each question.

    Raises:
        ValueError: There are no scores, or the two differ in length.
    """
    place, values = cluster_numbers(clusters, scores), np.asarray(scores, dtype=np.float64)
    pictures, mean, variance = int(place.max()) + 1, float(values.mean()), float(values.var())
    if pictures < FEWEST:
        return Interval(mean, None, None)
    size = _effective_size(values - mean, place)
    if variance > _NOTHING:
        size *= max(1.0, mean * (1.0 - mean) / variance)
    if pictures < len(values):
        size *= (_NORMAL / _student(pictures)) ** 2
    share, more = min(1.0, max(0.0, mean)), _NORMAL**2 / size
    centre = (share + more / 2.0) / (1.0 + more)
    half = math.sqrt(share * (1.0 - share) * more + more**2 / 4.0) / (1.0 + more)
    return Interval(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))


def paired_difference(ours: Numbers, theirs: Numbers, clusters: Clusters) -> Interval:
    """Mean difference on the same questions with the adjusted Wald interval of Agresti and Min (2005).

    The interval is the usual one with a clustered standard error after half a question of each of the four outcomes
    (both right, only ours, only theirs, none) is added to the effective sample.

    Args:
        ours: One score from 0 to 1 per question.
        theirs: The scores that are subtracted.
        clusters: The picture of each question.

    Raises:
        ValueError: There are no scores, or the three differ in length.
    """
    place = cluster_numbers(clusters, ours, theirs)
    differences = np.subtract(ours, theirs, dtype=np.float64)
    pictures, mean = int(place.max()) + 1, float(differences.mean())
    if pictures < FEWEST:
        return Interval(mean, None, None)
    size = _effective_size(differences - mean, place)
    centre = size * mean / (size + 2.0)
    square = (size * float((differences**2).mean()) + 1.0) / (size + 2.0)
    half = _student(pictures) * math.sqrt((square - centre**2) / (size + 2.0))
    return Interval(mean, min(mean, max(-1.0, centre - half)), max(mean, min(1.0, centre + half)))


def paired_ratio(ours: Numbers, theirs: Numbers, clusters: Clusters) -> Interval:
    """Ratio of two means on the same questions with its linearised (delta method) interval.

    The sample is adjusted as in `paired_difference`; the standard error of the ratio is that of the residuals
    `ours - ratio * theirs` (Cochran 1977, ratio estimates).

    Args:
        ours: One score from 0 to 1 per question.
        theirs: The scores of the denominator.
        clusters: The picture of each question.

    Raises:
        ValueError: There are no scores, the three differ in length, or the denominators sum to 0.
    """
    place = cluster_numbers(clusters, ours, theirs)
    above, below = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if not below.sum() > 0.0:
        raise ValueError("a ratio needs a denominator above 0")
    pictures, ratio = int(place.max()) + 1, float(above.sum() / below.sum())
    if pictures < FEWEST:
        return Interval(ratio, None, None)
    size = _effective_size(above - ratio * below, place)
    denominator = size * float(below.mean()) + 1.0
    centre = (size * float(above.mean()) + 1.0) / denominator
    squares = size * float(((above - centre * below) ** 2).mean()) + (1.0 + centre**2 + (1.0 - centre) ** 2) / 2.0
    half = _student(pictures) * math.sqrt(squares) / denominator
    return Interval(ratio, min(ratio, max(0.0, centre - half)), max(ratio, centre + half))


def cluster_numbers(clusters: Clusters, *scores: Numbers) -> NDArray[np.intp]:
    """The picture of each question as a number from 0.

    Raises:
        ValueError: There are no questions, or a list of scores has another length.
    """
    for values in scores:
        if not len(values) or len(values) != len(clusters):
            raise ValueError(f"{len(values)} scores in {len(clusters)} clusters")
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _effective_size(residuals: NDArray[np.float64], place: NDArray[np.intp]) -> float:
    """Number of independent questions whose mean would be as uncertain as that of these residuals."""
    questions, pictures = len(residuals), int(place.max()) + 1
    variance = float((residuals**2).mean())
    if questions == pictures:
        return float(questions)
    if variance <= _NOTHING:  # without variance nothing tells the design effect
        return math.sqrt(questions * pictures)
    squares = float((np.bincount(place, weights=residuals) ** 2).sum())
    between = pictures / (pictures - 1) * squares / questions**2
    return questions / max(1.0, between * (questions - 1) / variance)


@lru_cache(maxsize=256)
def _student(pictures: int) -> float:
    """97.5 % quantile of Student's distribution for so many clusters."""
    from scipy.stats import t

    return float(t.ppf(0.975, pictures - 1))
