"""Rank correlations with intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from tokenprune.report.stats.ranks import rank_correlation


@pytest.mark.parametrize("seed", range(4))
def test_the_values_are_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 9, 20).tolist(), random.normal(size=20).tolist()
    found = rank_correlation(x, y, [str(place) for place in range(20)])
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(kendalltau(x, y).statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.spearman is not None
    assert -1 <= found.low <= found.spearman <= found.high <= 1
    assert found == rank_correlation(x, y, [str(place) for place in range(20)])


def test_points_of_one_method_are_drawn_together() -> None:
    """The same points five times over tell no more: the interval stays as wide."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=12).tolist(), random.normal(size=12).tolist()
    names = [str(place) for place in range(12)]
    once, copied = rank_correlation(x, y, names), rank_correlation(x * 5, y * 5, names * 5)
    apart = rank_correlation(x * 5, y * 5, [str(place) for place in range(60)])
    assert once.low is not None
    assert once.high is not None
    assert copied.low == pytest.approx(once.low, abs=0.02)
    assert copied.high == pytest.approx(once.high, abs=0.02)
    assert apart.low is not None
    assert apart.high is not None
    assert apart.high - apart.low < 0.7 * (once.high - once.low)


def test_a_perfect_order_and_its_reverse() -> None:
    names = list("abcdef")
    assert rank_correlation([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 25, 36], names).spearman == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], names).kendall == pytest.approx(-1.0)


def test_without_an_order_there_is_a_reason() -> None:
    few = rank_correlation([1, 2, 3], [1, 2, 3], list("abc"))
    assert (few.points, few.spearman, few.kendall) == (3, None, None)
    assert "too few" in few.reason
    flat = rank_correlation([1, 1, 1, 1], [1, 2, 3, 4], list("abcd"))
    assert (flat.spearman, flat.low) == (None, None)
    assert "equal" in flat.reason
    with pytest.raises(ValueError, match="2, 1 and 2 points"):
        rank_correlation([1, 2], [1], ["a", "b"])
