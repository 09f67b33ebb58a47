from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.report.stats.tradeoff import Point, hypervolume, pareto_front

CELLS = 12
POINTS = st.lists(
    st.tuples(st.integers(0, CELLS + 3), st.integers(0, CELLS)).map(lambda at: Point("p", "b", at[0], at[1] / CELLS)),
    max_size=12,
)


def point(cost: float, accuracy: float, label: str = "p") -> Point:
    return Point(label, "b", cost, accuracy)


def dominates(one: Point, other: Point) -> bool:
    no_worse = one.cost <= other.cost and one.accuracy >= other.accuracy
    return no_worse and (one.cost, one.accuracy) != (other.cost, other.accuracy)


def test_the_front_by_hand() -> None:
    cheap, good, beaten, twin = point(1, 0.5), point(3, 0.9), point(3, 0.6), point(1, 0.5, "twin")
    assert pareto_front([good, beaten, cheap, twin]) == (cheap, twin, good)
    assert pareto_front([]) == ()


def test_what_differs_by_rounding_alone_is_equal() -> None:
    """Means over seeds of equal answers differ in their last bits."""
    exact, rounded = point(1, 0.5), point(1, 0.49999999999999994, "twin")
    assert set(pareto_front([exact, rounded])) == {exact, rounded}
    assert pareto_front([exact, point(2, 0.5000000000000001)]) == (exact,)


def test_the_hypervolume_by_hand() -> None:
    # from cost 1 to 3 at 0.5, from 3 to 4 at 0.9; the last point costs more than the reference
    points = [point(1, 0.5), point(3, 0.9), point(2, 0.4), point(5, 1.0)]
    assert hypervolume(points, cost=4) == pytest.approx(2 * 0.5 + 1 * 0.9)
    assert hypervolume(points, cost=4, accuracy=0.5) == pytest.approx(0.4)
    assert hypervolume([point(5, 1.0)], cost=4) == 0.0
    assert hypervolume([], cost=4) == 0.0


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[Point]) -> None:
    expected = [it for it in points if not any(dominates(other, it) for other in points)]
    assert sorted(pareto_front(points), key=repr) == sorted(expected, key=repr)


@given(POINTS)
def test_the_hypervolume_counts_the_cells_that_a_point_dominates(points: list[Point]) -> None:
    cost, accuracy = np.meshgrid(np.arange(CELLS) + 0.5, (np.arange(CELLS) + 0.5) / CELLS)
    covered = np.zeros_like(cost, dtype=bool)
    for it in points:
        covered |= (it.cost < cost) & (it.accuracy > accuracy)
    assert hypervolume(points, cost=CELLS) == pytest.approx(covered.sum() / CELLS)


@given(POINTS, POINTS)
def test_more_points_never_dominate_less(points: list[Point], more: list[Point]) -> None:
    together = hypervolume([*points, *more], cost=CELLS)
    assert together >= hypervolume(points, cost=CELLS) - 1e-12
    assert together == pytest.approx(hypervolume([*more, *points], cost=CELLS))
