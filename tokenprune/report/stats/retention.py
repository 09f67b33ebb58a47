"""How many tokens a pruner needs to retain a share of the unpruned accuracy, read off its points in the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tokenprune.report.stats.statistics import level

TARGETS = (0.99, 0.95, 0.90)
"""Retentions whose budgets are looked up."""


@dataclass(frozen=True, slots=True)
class Needed:
    """The share of visual tokens that retains `target` of the unpruned accuracy.

    Args:
        target: Retention asked for.
        ratio: The share; `None` where no point reaches the target.
        bound: `between` two measured points (interpolated), `at most` the smallest measured one, or `more than` the
            largest measured one.
        low: Largest measured share that misses the target, `None` where every point reaches it.
        high: Smallest measured share from which on every point reaches it, `None` where the largest misses it.
    """

    target: float
    ratio: float | None
    bound: Literal["between", "at most", "more than"]
    low: float | None
    high: float | None


def needed(points: Iterable[tuple[float, float]], target: float) -> Needed | None:
    """Interpolate the share of tokens at which a retention is reached, and kept by every larger measured share.

    A curve that dips below the target at a larger share counts from that dip on, and of several points at one share
    the worst counts: the answer errs on the side of more tokens. Nothing is extrapolated.

    Args:
        points: (share of visual tokens, retention), in any order.
        target: Retention, above 0.

    Returns:
        `None` where there are no points.
    """
    worst: dict[float, float] = {}
    for share, retention in points:
        worst[share] = min(retention, worst.get(share, retention))
    curve = sorted(worst.items())
    if not curve:
        return None
    missed = [place for place, (_, retention) in enumerate(curve) if level(retention) < level(target)]
    if not missed:
        return Needed(target, curve[0][0], "at most", None, curve[0][0])
    last = missed[-1]
    low, below = curve[last]
    if last == len(curve) - 1:
        return Needed(target, None, "more than", low, None)
    high, above = curve[last + 1]
    ratio = low + (high - low) * (target - below) / (above - below)
    return Needed(target, ratio, "between", low, high)
