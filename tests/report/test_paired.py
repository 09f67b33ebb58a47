from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenprune.report.hard import hard_questions
from tokenprune.report.paired import against_baselines, against_baselines_by_family, all_pairs
from tokenprune.report.scores import Scores
from tokenprune.report.statistics import holm

FAMILIES = ["a", "a", "b", "b", "b", "b"]
ANSWERS = st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6)


def scores(*by_seed: list[float]) -> Scores:
    count = len(by_seed[0])
    families = np.array([FAMILIES[place % 6] for place in range(count)])
    return Scores(np.array(by_seed), tuple(range(len(by_seed))), np.arange(count), families)


GOOD, BAD = scores([1.0] * 12), scores([0.0] * 10 + [1.0] * 2)
MIDDLE = scores([1.0] * 6 + [0.0] * 6)


def test_every_pair_once_adjusted_together() -> None:
    pairs = all_pairs({"good": GOOD, "middle": MIDDLE, "bad": BAD})
    assert [(pair.first, pair.second) for pair in pairs] == [("good", "middle"), ("good", "bad"), ("middle", "bad")]
    raw = [stats.binomtest(6, 6).pvalue, stats.binomtest(10, 10).pvalue, stats.binomtest(6, 8).pvalue]
    assert [pair.p for pair in pairs] == pytest.approx(raw)
    assert [pair.p_adjusted for pair in pairs] == pytest.approx(holm(raw))
    assert [pair.difference.mean for pair in pairs] == pytest.approx([0.5, 10 / 12, 4 / 12])
    assert [pair.significant for pair in pairs] == [False, True, False]


@given(ANSWERS, ANSWERS)
def test_the_other_way_round_is_the_same_with_the_sign_turned(one: list[float], two: list[float]) -> None:
    (there,) = all_pairs({"one": scores(one), "two": scores(two)})
    (back,) = all_pairs({"two": scores(two), "one": scores(one)})
    assert back.p == there.p
    assert back.difference.mean == pytest.approx(-there.difference.mean)
    assert (back.difference.low, back.difference.high) == pytest.approx(
        (-there.difference.high, -there.difference.low), abs=0.17
    )  # another draw: up to one question


def test_baselines_are_not_compared_with_themselves() -> None:
    found = against_baselines({"good": GOOD, "random": BAD}, {"random": BAD, "downsample": MIDDLE})
    assert list(found) == [("good", "random"), ("good", "downsample"), ("random", "downsample")]


def test_families_have_their_own_questions() -> None:
    found = against_baselines_by_family({"good": GOOD}, {"random": BAD})
    assert {key[2]: entry.questions for key, entry in found.items()} == {"a": 4, "b": 8}
    assert found["good", "random", "b"].difference.mean == pytest.approx(6 / 8)
    raw = [entry.p for entry in found.values()]
    assert [entry.p_adjusted for entry in found.values()] == pytest.approx(holm(raw))


def test_hard_questions_by_hand() -> None:
    unpruned = scores([1.0, 1.0, 0.0, 0.0])
    downsampled = scores([1.0, 0.0, 1.0, 0.0])
    mask, hard = hard_questions(unpruned, downsampled)
    assert mask is not None
    assert mask.tolist() == [False, True, False, False]
    assert hard.questions == 1
    assert scores([0.0, 1.0, 0.0, 0.0]).only(mask).accuracy().mean == 1.0


def test_an_empty_hard_subset_has_a_reason() -> None:
    answers = scores([1.0, 0.0])
    for unpruned, downsampled, reason in [
        (answers, answers, "`downsample` answers everything that the unpruned model does"),
        (answers, None, "`downsample` has no result at this budget"),
        (None, answers, "the unpruned model has no result"),
    ]:
        mask, hard = hard_questions(unpruned, downsampled)
        assert mask is None
        assert (hard.questions, hard.reason) == (0, reason)
