from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.report.stats.tradeoff import tokens_for_retention

CURVE = [(0.1, 0.5), (0.2, 0.9), (0.4, 1.0)]


def test_between_two_points_on_a_straight_line() -> None:
    found = tokens_for_retention(CURVE, 0.95)
    assert found is not None
    assert (found.bound, found.low, found.high) == ("between", 0.2, 0.4)
    assert found.ratio == pytest.approx(0.3)
    assert tokens_for_retention(CURVE[::-1], 0.95) == found


def test_nothing_is_extrapolated() -> None:
    below = tokens_for_retention(CURVE, 0.5)
    assert below is not None
    assert (below.bound, below.ratio, below.low) == ("at most", 0.1, None)
    above = tokens_for_retention(CURVE[:2], 0.95)
    assert above is not None
    assert (above.bound, above.ratio, above.low, above.high) == ("more than", None, 0.2, None)
    assert tokens_for_retention([], 0.9) is None


def test_a_retention_that_misses_by_rounding_alone_reaches_the_target() -> None:
    found = tokens_for_retention([(0.1, 0.9499999999999999), (0.4, 1.0)], 0.95)
    assert found is not None
    assert (found.bound, found.ratio) == ("at most", 0.1)


def test_a_dip_at_a_larger_share_counts() -> None:
    found = tokens_for_retention([(0.1, 0.96), (0.2, 0.90), (0.4, 1.0)], 0.95)
    assert found is not None
    assert found.ratio == pytest.approx(0.3)


def test_the_worst_of_two_points_at_one_share_counts() -> None:
    found = tokens_for_retention([(0.2, 0.99), (0.2, 0.80), (0.4, 1.0)], 0.95)
    assert found is not None
    assert (found.bound, found.low) == ("between", 0.2)


@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 1.2)), min_size=1, max_size=8),
    st.floats(0.1, 1.0),
    st.floats(0.1, 1.0),
)
def test_more_retention_never_needs_less(points: list[tuple[float, float]], one: float, other: float) -> None:
    low, high = (tokens_for_retention(points, target) for target in sorted((one, other)))
    assert low is not None
    assert high is not None
    if low.ratio is None:
        assert high.ratio is None
    elif high.ratio is not None:
        assert low.ratio <= high.ratio + 1e-9
        assert min(share for share, _ in points) <= low.ratio <= max(share for share, _ in points)
