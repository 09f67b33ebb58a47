"""Statistics of scores on the same questions, with pictures as the unit of chance.

Several questions about one picture are not independent, so every resampling draws pictures, not questions. All draws
come from a fixed seed: the same scores give the same interval. Pictures with the same scores are drawn as one kind
with its multiplicity, which is the same distribution as drawing them one by one (what `scipy.stats.bootstrap` does)
at a cost that does not grow with the number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

FEWEST = 5
"""Pictures that an interval needs: fewer say nothing about how much pictures differ."""

_NORMAL = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def level(figure: float) -> float:
    """A figure as it is compared: means over seeds of equal answers differ in their last bits."""
    return round(figure, 9)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval.

    Args:
        mean: The estimate.
        low: Lower end; `None` where there are too few pictures (below 5) for an interval, and so is `high`.
        high: Upper end.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def score_interval(scores: Numbers, clusters: Clusters) -> Interval:
    """Mean of scores from 0 to 1 with Wilson's interval on the effective number of questions.

    Near 0 and 1 resampling cannot show what was not seen: 16 right answers of 16 give no width at all. Wilson's
    interval holds its level there. It counts as many right-or-wrong questions as would vary like these scores: fewer
    where questions about one picture go together (design effect; Dean and Pagano 2015, with the quantile of Student's
    distribution for the number of pictures), more where scores are means over seeds.

    Args:
        scores: One number from 0 to 1 per question.
        clusters: The picture of each question.

    Raises:
        ValueError: There are no scores, or the two differ in length.
    """
    sums, sizes = _by_cluster(scores, clusters), _by_cluster(np.ones(len(scores)), clusters)
    mean = float(sums.sum() / sizes.sum())
    if len(sizes) < FEWEST:
        return Interval(mean, None, None)
    values = np.asarray(scores, dtype=np.float64)
    low, high = _wilson(mean, _effective(values, mean, sums, sizes))
    return Interval(mean, min(low, mean), max(high, mean))


def _wilson(mean: float, count: float) -> tuple[float, float]:
    """Wilson's score interval, of a number of questions that need not be whole."""
    share = min(1.0, max(0.0, mean))
    more = _NORMAL**2 / count
    centre = (share + more / 2.0) / (1.0 + more)
    half = math.sqrt(share * (1.0 - share) * more + more**2 / 4.0) / (1.0 + more)
    return max(0.0, centre - half), min(1.0, centre + half)


def _effective(
    values: NDArray[np.float64], mean: float, sums: NDArray[np.float64], sizes: NDArray[np.float64]
) -> float:
    """So many independent right-or-wrong questions would have a mean as uncertain as that of these scores."""
    questions, pictures = len(values), len(sizes)
    alone = questions == pictures
    variance = float(values.var())
    if variance <= 1e-12:  # nothing varies, so nothing tells how far the questions about one picture go together
        effect = math.sqrt(questions / pictures)
    else:
        between = pictures / (pictures - 1) * float(((sums - mean * sizes) ** 2).sum()) / questions**2
        clustering = 1.0 if alone else max(1.0, between * (questions - 1) / variance)
        effect = clustering * variance / max(variance, mean * (1.0 - mean))
    return questions / effect * (1.0 if alone else (_NORMAL / _student(pictures - 1)) ** 2)


@lru_cache(maxsize=256)
def _student(degrees: int) -> float:
    """97.5 % quantile of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def paired_difference(ours: Numbers, theirs: Numbers, clusters: Clusters, *, seed: int = 0) -> Interval:
    """Mean difference on the same questions with its smoothed bootstrap interval; pictures are drawn with replacement.

    Args:
        ours: One score from 0 to 1 per question.
        theirs: The scores that are subtracted.
        clusters: The picture of each question.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no scores, or the three differ in length.
    """
    above, below = _by_cluster(ours, clusters), _by_cluster(theirs, clusters)
    sizes = _by_cluster(np.ones(len(ours)), clusters)
    size = float(sizes.mean())
    imagined = [(sign * math.sqrt(size), size) for sign in (1.0, -1.0, 0.0, 0.0)]
    return _bootstrap(above - below, sizes, imagined, seed)


def paired_ratio(ours: Numbers, theirs: Numbers, clusters: Clusters, *, seed: int = 0) -> Interval:
    """Ratio of two sums of scores of the same questions with its smoothed bootstrap interval, the two drawn together.

    Draws whose denominator is 0 have no ratio and are left out of the interval.

    Args:
        ours: One score from 0 to 1 per question.
        theirs: The scores of the denominator.
        clusters: The picture of each question.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no scores, the three differ in length, or the denominators sum to 0.
    """
    above, below = _by_cluster(ours, clusters), _by_cluster(theirs, clusters)
    if not below.sum() > 0.0:
        raise ValueError("a ratio needs a denominator above 0")
    size = len(ours) / len(above)
    differing = math.sqrt(size)
    agreed = (size - differing) * float(below.sum()) / len(ours)
    imagined = [(differing + agreed, agreed), (agreed, differing + agreed), (size, size), (0.0, 0.0)]
    return _bootstrap(above, below, imagined, seed)


def _bootstrap(
    above: NDArray[np.float64], below: NDArray[np.float64], imagined: Iterable[tuple[float, float]], seed: int
) -> Interval:
    """Ratio of two sums over pictures with its percentile bootstrap interval, smoothed by imagined pictures.

    Where few questions differ, drawing what was seen gives an interval that is far too narrow, or none. So half a
    picture of each of the four outcomes of a paired comparison is added to those that are drawn from: only ours is
    right, only theirs, both, none (Agresti and Min 2005). Questions about one picture go together to an extent that
    few differences do not tell; of the questions about an imagined picture, as many as the root of their number
    differ. One picture less is drawn than there are, which makes up for the variance that drawing loses (McCarthy and
    Snowden 1985). Simulations in `tests/report/test_statistics.py` say what comes of it.
    """
    ratio = float(above.sum() / below.sum())
    if len(above) < FEWEST:
        return Interval(ratio, None, None)
    weights: dict[tuple[float, float], float] = {}
    for kinds, weight in ((zip(above.tolist(), below.tolist(), strict=True), 1.0), (imagined, 0.5)):
        for kind in kinds:
            weights[kind] = weights.get(kind, 0.0) + weight
    low, high = _drawn(tuple(sorted(weights.items())), len(above) - 1, seed)
    return Interval(ratio, min(low, ratio), max(high, ratio))


@lru_cache(maxsize=4096)  # two pruners on few questions have few distinct comparisons
def _drawn(kinds: tuple[tuple[tuple[float, float], float], ...], size: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of a ratio of sums over pictures, of which `size` are drawn.

    Args:
        kinds: Of each kind of picture its (numerator, denominator), and how many there are.
        size: Pictures in a draw.
        seed: Seed of the draws.
    """
    random = np.random.default_rng(seed)
    values, weights = (np.array(part) for part in zip(*kinds, strict=True))
    drawn = []
    for start in range(0, RESAMPLES, _BLOCK):
        counts = random.multinomial(size, weights / weights.sum(), size=min(_BLOCK, RESAMPLES - start))
        sums = counts @ values
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
