"""Trade-offs of cost and accuracy: Pareto front, hypervolume, and the tokens that a retention takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenprune.report.stats.intervals import rounded

TARGETS = (0.99, 0.95, 0.90)
"""Retentions whose budgets are looked up."""


@dataclass(frozen=True, slots=True)
class Point:
    """One pruner at one budget; cost is to be small, accuracy large.

    Args:
        label: The pruner.
        budget: Its budget.
        cost: What it costs.
        accuracy: Its accuracy.
        mark: Says to read the cost with care.
        text: The cost as tables show it, if that is more than a number.
    """

    label: str
    budget: str
    cost: float
    accuracy: float
    mark: str = ""
    text: str = ""


def pareto_front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other one dominates, in the order of cost.

    A point dominates another one if it costs no more, is no less accurate, and differs in one of the two. Equal points
    do not dominate each other; points that differ by rounding alone are equal.
    """
    front: list[Point] = []
    best: tuple[float, float] | None = None
    for point in sorted(points, key=lambda found: (rounded(found.cost), -rounded(found.accuracy))):
        place = rounded(point.cost), rounded(point.accuracy)
        if best is None or place[1] > best[1] or place == best:
            front.append(point)
            best = place
    return tuple(front)


def hypervolume(points: Sequence[Point], *, cost: float, accuracy: float = 0.0) -> float:
    """Area of the plane that the points dominate, inside the corner of a reference point.

    Args:
        points: Any points; those outside the corner add nothing.
        cost: Cost of the reference point.
        accuracy: Accuracy of the reference point.
    """
    inside = [point for point in pareto_front(points) if point.cost < cost and point.accuracy > accuracy]
    edges = [point.cost for point in inside[1:]] + [cost] * bool(inside)
    return sum((edge - point.cost) * (point.accuracy - accuracy) for point, edge in zip(inside, edges, strict=True))


@dataclass(frozen=True, slots=True)
class TokenShare:
    """The share of visual tokens that retains `target` of the unpruned accuracy.

    Args:
        target: Retention asked for.
        ratio: The share; `None` if no point reaches the target.
        bound: `between` two measured points (interpolated), `at most` the smallest measured one, or `more than` the
            largest measured one.
        low: Largest measured share that misses the target; `None` if every point reaches it.
        high: Smallest measured share from which on every point reaches it; `None` if the largest one misses it.
    """

    target: float
    ratio: float | None
    bound: Literal["between", "at most", "more than"]
    low: float | None
    high: float | None


def tokens_for_retention(points: Iterable[tuple[float, float]], target: float) -> TokenShare | None:
    """The share of tokens at which a retention is reached, and kept by every larger measured share.

    It lies on a straight line between two measured shares and is never extrapolated. If a curve dips below the target
    at a larger share, it counts from that dip on; of several points at one share the worst counts.

    Args:
        points: (share of visual tokens, retention), in any order.
        target: Retention, above 0.

    Returns:
        `None` if there are no points.
    """
    worst: dict[float, float] = {}
    for share, retention in points:
        worst[share] = min(retention, worst.get(share, retention))
    curve = sorted(worst.items())
    if not curve:
        return None
    missed = [place for place, (_, retention) in enumerate(curve) if rounded(retention) < rounded(target)]
    if not missed:
        return TokenShare(target, curve[0][0], "at most", None, curve[0][0])
    last = missed[-1]
    low, below = curve[last]
    if last == len(curve) - 1:
        return TokenShare(target, None, "more than", low, None)
    high, above = curve[last + 1]
    ratio = low + (high - low) * (target - below) / (above - below)
    return TokenShare(target, ratio, "between", low, high)
