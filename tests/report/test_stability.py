from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenprune.report.scores import Scores
from tokenprune.report.stability import kendall_w, rank_stability


def scores(*by_seed: list[float]) -> Scores:
    count = len(by_seed[0])
    return Scores(np.array(by_seed), tuple(range(len(by_seed))), np.arange(count), np.array(["all"] * count))


def test_full_agreement_and_none() -> None:
    assert kendall_w([[1, 2, 3], [10, 20, 30]]) == pytest.approx(1.0)
    assert kendall_w([[1, 2, 3], [3, 2, 1]]) == pytest.approx(0.0)
    assert kendall_w([[1, 1, 1], [2, 2, 2]]) is None


def test_by_hand() -> None:
    # rank sums 4, 5, 9 of mean 6: S = 14, W = 12 S / (9 (27 - 3)) = 7/9
    assert kendall_w([[1, 2, 3], [2, 1, 3], [1, 2, 3]]) == pytest.approx(7 / 9)


@given(st.integers(2, 5), st.data())
def test_it_is_friedmans_statistic_scaled(judges: int, data: st.DataObject) -> None:
    row = st.lists(st.integers(0, 3).map(float), min_size=4, max_size=4)
    table = data.draw(st.lists(row, min_size=judges, max_size=judges))
    found = kendall_w(table)
    if found is None:
        assert all(len(set(row)) == 1 for row in table)
        return
    statistic = stats.friedmanchisquare(*np.array(table).T).statistic
    assert found == pytest.approx(statistic / (judges * 3))
    assert -1e-12 <= found <= 1 + 1e-12


def test_ranks_that_each_seed_alone_would_have_given() -> None:
    found = rank_stability(
        {
            "steady": scores([1.0, 0.0, 1.0, 0.0]),
            "one": scores([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]),
            "two": scores([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]),
        }
    )
    assert found is not None
    assert found.seeds == 2
    assert [(entry.label, entry.accuracy, entry.ranks) for entry in found.seeded] == [
        ("one", (0.25, 0.75), (1, 3)),
        ("two", (0.0, 1.0), (1, 3)),
    ]
    assert found.kendall_w == pytest.approx(0.0)


def test_it_says_why_there_is_no_coefficient() -> None:
    assert rank_stability({"steady": scores([1.0, 0.0])}) is None
    alone = rank_stability({"one": scores([1.0, 0.0], [0.0, 0.0])})
    assert alone is not None
    assert (alone.kendall_w, alone.reason) == (None, "only one pruner depends on the seed")
    tied = rank_stability({name: scores([1.0, 0.0], [1.0, 0.0]) for name in ("one", "two")})
    assert tied is not None
    assert (tied.kendall_w, tied.reason) == (None, "every seed ties all of them")
