from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tokenprune.evaluation.cost.spread import Precision, Spread, interval_of_median

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
    assert (first is None) == (second is None) == (len(values) < 6)
    if first is not None:
        assert second == pytest.approx(first, rel=1e-6, abs=1e-9)


def test_uncertainty_is_half_the_width_of_the_interval() -> None:
    assert Spread(10.0, 9.5, 10.5, 12, 9.0, 11.0).uncertainty() == pytest.approx(0.1)
    assert Spread(0.0, 0.0, 0.0, 9, 0.0, 0.0).uncertainty() is None
    assert Spread(10.0, 9.0, 11.0, 5).uncertainty() is None


@pytest.mark.parametrize("count", range(1, 41))
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int) -> None:
    """The k-th smallest and the k-th largest value, with the largest k that SciPy's binomial distribution allows."""
    values = list(range(count, 0, -1))
    rank = int(binom.ppf(0.025, count, 0.5))
    rank -= binom.cdf(rank - 1, count, 0.5) > 0.025
    found = interval_of_median(values)
    if rank == 0:
        assert found is None
        return
    assert found == (rank, count + 1 - rank)
    assert 1.0 - 2.0 * binom.cdf(rank - 1, count, 0.5) >= 0.95
    assert 1.0 - 2.0 * binom.cdf(rank, count, 0.5) < 0.95


def test_fewer_than_six_values_have_no_interval() -> None:
    assert interval_of_median([3.0, 1.0, 2.0, 5.0, 4.0]) is None
    assert interval_of_median([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == (1.0, 6.0)


def test_the_least_certain_ratio_decides() -> None:
    steady, shaky = (Spread.of([1.0] * 6), Spread.of([1.0, 1.2, 0.8, 1.4, 1.0, 1.0]))
    assert Precision.of([steady], 12, 0.01) == Precision(12, 0.01, 0.0, met=True)
    both = Precision.of([steady, shaky], 12, 0.01)
    assert not both.met
    assert both.uncertainty == shaky.uncertainty()
    assert Precision.of([steady, shaky], 12, 1.0).met


def test_a_ratio_without_an_interval_is_never_precise() -> None:
    few = Spread.of([1.0] * 5)
    assert Precision.of([few, Spread.of([1.0] * 6)], 10, 1e9) == Precision(10, 1e9, None, met=False)
