from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.metrics.spread import NOTCH, Precision, Spread

times = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=30)


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)


@given(times)
def test_quartiles_are_in_order_and_among_the_values(values: list[float]) -> None:
    found = Spread.of(values)
    assert min(values) <= found.q1 <= found.median <= found.q3 <= max(values)
    assert found.repeats == len(values)


def test_one_outlier_hardly_moves_it() -> None:
    assert Spread.of([10.0, 10.0, 10.1, 10.2, 9000.0]).median == 10.1


@given(times, st.floats(0.1, 100.0))
def test_uncertainty_does_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    first, second = (Spread.of(each).uncertainty() for each in (values, [factor * value for value in values]))
    assert (first is None) == (second is None) == (len(values) == 1)
    if first is not None:
        assert second == pytest.approx(first, rel=1e-6, abs=1e-9)


def test_uncertainty_is_the_notch_of_a_box_plot() -> None:
    found = Spread(median=10.0, q1=9.0, q3=11.0, repeats=16)
    assert found.uncertainty() == pytest.approx(NOTCH * 2.0 / (10.0 * math.sqrt(16)))
    assert Spread(0.0, 0.0, 0.0, 9).uncertainty() is None


def test_the_least_certain_quantity_decides() -> None:
    steady, shaky = [10.0, 10.0, 10.0, 10.0], [10.0, 12.0, 8.0, 14.0]
    assert Precision.of([steady], 0.01) == Precision(4, 0.01, 0.0, met=True)
    both = Precision.of([steady, shaky], 0.01)
    assert not both.met
    assert both.uncertainty == Spread.of(shaky).uncertainty()
    assert Precision.of([steady, shaky], 1.0).met


def test_one_repeat_is_never_precise() -> None:
    assert Precision.of([[10.0], [3.0]], 1e9) == Precision(1, 1e9, None, met=False)
