"""Median and quartiles of repeated measurements, and when there are enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Half-width of a notch around the median, in interquartile ranges over the root of the count: McGill, Tukey and
#: Larsen, Variations of Box Plots, The American Statistician 32 (1978). About a 95 % interval of the median.
NOTCH = 1.57


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    q1: float
    q3: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summary of at least one value (quartiles by linear interpolation)."""
        q1, median, q3 = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
        return cls(float(median), float(q1), float(q3), len(values))

    def uncertainty(self) -> float | None:
        """Half-width of the median's notch, relative to the median; `None` for one value or a median of 0."""
        if self.repeats < 2 or self.median == 0:
            return None
        return float(NOTCH * (self.q3 - self.q1) / (abs(self.median) * self.repeats**0.5))


@dataclass(frozen=True, slots=True)
class Precision:
    """How well the medians of a measurement are known.

    Args:
        repeats: Measurements that were made.
        tolerance: Relative uncertainty at which no more were to be made.
        uncertainty: The largest one of all the medians that were looked at; `None` where it is not known.
        met: Whether it is within the tolerance; otherwise the repeats ran out.
    """

    repeats: int
    tolerance: float
    uncertainty: float | None
    met: bool

    @classmethod
    def of(cls, series: Sequence[Sequence[float]], tolerance: float) -> Precision:
        """The precision of several quantities that were measured together, the same number of times."""
        found = [Spread.of(values).uncertainty() for values in series]
        known = [value for value in found if value is not None]
        widest = max(known) if known and len(known) == len(found) else None
        return cls(len(series[0]), tolerance, widest, widest is not None and widest <= tolerance)
