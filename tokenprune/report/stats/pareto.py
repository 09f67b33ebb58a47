"""Which points are not beaten in both cost and accuracy, and how much of the plane they beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenprune.report.stats.statistics import level


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

    A point dominates another one where it costs no more, is no less accurate, and differs in one of the two; equal
    points do not dominate each other. What differs by rounding alone is equal.
    """
    front: list[Point] = []
    best: tuple[float, float] | None = None
    for point in sorted(points, key=lambda found: (level(found.cost), -level(found.accuracy))):
        place = level(point.cost), level(point.accuracy)
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
