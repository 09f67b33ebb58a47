from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenprune.report.stats.ranks import Stability, kendall_w, rank_stability
from tokenprune.report.stats.scores import Scores


def scores(*by_seed: list[float]) -> Scores:
    count = len(by_seed[0])
    table, families = np.array(by_seed), np.array(["all"] * count)
    return Scores(table, tuple(range(len(by_seed))), np.arange(count), families, np.ones(table.shape, dtype=bool))


def stability(scores: dict[str, Scores], **planned: int) -> Stability | None:
    return rank_stability(scores, {label: planned.get(label, len(found.seeds)) for label, found in scores.items()})


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
    found = stability(
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
    assert stability({"steady": scores([1.0, 0.0])}) is None
    alone = stability({"one": scores([1.0, 0.0], [0.0, 0.0])})
    assert alone is not None
    assert (alone.kendall_w, alone.reason) == (None, "only one pruner depends on the seed")
    tied = stability({name: scores([1.0, 0.0], [1.0, 0.0]) for name in ("one", "two")})
    assert tied is not None
    assert (tied.kendall_w, tied.reason) == (None, "every seed ties all of them")


def test_a_pruner_that_lacks_a_seed_is_left_out_and_not_taken_for_one_without_seeds() -> None:
    """Its mean over the seeds that ran would stand beside single seeds of the others."""
    found = stability(
        {
            "whole": scores([1.0, 0.0], [0.0, 0.0], [1.0, 1.0]),
            "part": scores([1.0, 1.0], [1.0, 1.0]),
            "one": scores([1.0, 1.0]),
        },
        part=3,
        one=3,
    )
    assert found is not None
    assert [(entry.label, entry.ranks) for entry in found.seeded] == [("whole", (1, 1))]
    assert found.left_out == (
        "part is left out: 2 of 3 seeds have a result",
        "one is left out: 1 of 3 seeds have a result",
    )


def test_equal_means_share_a_rank_whatever_their_last_bits() -> None:
    thirds = scores([1 / 3, 0.7, 2 / 3, 0.3], [0.0, 0.0, 0.0, 0.0])
    halves = scores([0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0])
    assert thirds.by_seed[0].mean() != halves.by_seed[0].mean()
    found = stability({"thirds": thirds, "halves": halves})
    assert found is not None
    assert [entry.ranks for entry in found.seeded] == [(1, 1), (1, 1)]
