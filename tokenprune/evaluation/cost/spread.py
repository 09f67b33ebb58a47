"""Median, quartiles and interval of repeated measurements, and when there are enough of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
"""Share of measurements whose interval holds the true median, at least."""

TOLERANCE = 0.05
"""Relative uncertainty of a ratio that is good enough if nothing else is asked for."""


def interval_of_median(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of a median by order statistics, which assumes no distribution (that of the sign test).

    Among n values, as many lie below the true median as heads fall in n throws of a coin. So it lies between the k-th
    smallest and the k-th largest value with a probability that is known; k is the largest one for which that is at
    least `CONFIDENCE`.

    Args:
        values: Independent measurements of one quantity.

    Returns:
        Lower and upper end; `None` for fewer than 6 values, which do not suffice for any such interval.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = math.comb(count, 0) / 2**count, 0
    while outside <= (1.0 - CONFIDENCE) / 2.0:
        rank += 1
        outside += math.comb(count, rank) / 2**count
    return None if rank == 0 else (ordered[rank - 1], ordered[count - rank])


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements, and the 95 % interval of the median.

    Args:
        median: Median.
        q1: Lower quartile.
        q3: Upper quartile.
        repeats: Number of measurements.
        low: Lower end of the interval (see `interval_of_median`), and `high` the upper one; `None` where there are too
            few measurements.
    """

    median: float
    q1: float
    q3: float
    repeats: int
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summary of at least one value (quartiles by linear interpolation)."""
        q1, median, q3 = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
        low, high = interval_of_median(values) or (None, None)
        return cls(float(median), float(q1), float(q3), len(values), low, high)

    def uncertainty(self) -> float | None:
        """Half the width of the interval, relative to the median; `None` without an interval or for a median of 0."""
        if self.low is None or self.high is None or self.median == 0:
            return None
        return (self.high - self.low) / (2.0 * abs(self.median))


@dataclass(frozen=True, slots=True)
class Precision:
    """How well the ratios of a measurement are known.

    Args:
        repeats: Turns that were taken.
        tolerance: Relative uncertainty at which no more were to be taken.
        uncertainty: The largest one of the ratios; `None` where it is not known.
        met: Whether it is within the tolerance; otherwise the time or the repeats ran out.
    """

    repeats: int
    tolerance: float
    uncertainty: float | None
    met: bool

    @classmethod
    def of(cls, ratios: Sequence[Spread], repeats: int, tolerance: float) -> Precision:
        """The precision of at least one ratio."""
        found = [ratio.uncertainty() for ratio in ratios]
        known = [value for value in found if value is not None]
        widest = max(known) if len(known) == len(found) else None
        return cls(repeats, tolerance, widest, widest is not None and widest <= tolerance)
