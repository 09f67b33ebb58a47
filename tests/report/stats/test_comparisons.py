from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenprune.report.stats.comparisons import against_baselines, against_baselines_by_family, all_pairs, holm
from tokenprune.report.stats.scores import Scores, hard_questions

FAMILIES = ["a", "a", "b", "b", "b", "b"]
ANSWERS = st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6)


def scores(*by_seed: list[float], failed: Sequence[int] = ()) -> Scores:
    """Scores by seed; the questions `failed` raised an error under every one."""
    count, table = len(by_seed[0]), np.array(by_seed)
    families = np.array([FAMILIES[place % 6] for place in range(count)])
    answered = np.ones(table.shape, dtype=bool)
    answered[:, list(failed)] = False
    return Scores(np.where(answered, table, 0.0), tuple(range(len(by_seed))), np.arange(count), families, answered)


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
    assert (back.difference.low, back.difference.high) == pytest.approx((-there.difference.high, -there.difference.low))


def test_two_baselines_are_compared_with_each_other_once() -> None:
    """Both rows show it, from either side, and Holm's correction counts it as one."""
    both = {"random": BAD, "downsample": MIDDLE}
    found = against_baselines({"good": GOOD, **both}, both)
    once = [("good", "random"), ("good", "downsample"), ("random", "downsample")]
    assert list(found) == [*once, ("downsample", "random")]
    assert [found[key].p_adjusted for key in once] == pytest.approx(holm([found[key].p for key in once]))
    there, back = found["random", "downsample"], found["downsample", "random"]
    assert (back.first, back.second, back.p_adjusted) == ("downsample", "random", there.p_adjusted)
    assert back.difference.bounds is not None
    assert there.difference.bounds == (-back.difference.bounds[1], -back.difference.bounds[0])
    families = against_baselines_by_family({"good": GOOD, **both}, both)
    assert len(families) == 2 * 4
    counted = [entry.p for (label, *_), entry in families.items() if label != "downsample"]
    adjusted = [entry.p_adjusted for (label, *_), entry in families.items() if label != "downsample"]
    assert adjusted == pytest.approx(holm(counted))


def test_a_pruner_that_never_ran_is_not_compared() -> None:
    """Its wrong answers are a convention, not an observation, and would cost the others some of their level."""
    dead = scores([0.0] * 12, failed=range(12))
    assert ("dead", "random") not in against_baselines({"good": GOOD, "dead": dead}, {"random": BAD})
    assert [key[0] for key in against_baselines_by_family({"good": GOOD, "dead": dead}, {"random": BAD})] == [
        "good"
    ] * 2
    assert [(pair.first, pair.second) for pair in all_pairs({"good": GOOD, "dead": dead, "bad": BAD})] == [
        ("good", "bad")
    ]


def test_what_a_baseline_failed_to_answer_does_not_make_it_easier_to_beat() -> None:
    """Of 12 questions the baseline answers 6, all right, and raises on 6; the pruner answers all."""
    broken = scores([1.0] * 12, failed=range(6))
    found = against_baselines({"good": GOOD, "random": broken}, {"random": broken})["good", "random"]
    assert (found.questions, found.difference.mean, found.p) == (6, 0.0, 1.0)
    # the other way round a pruner's failures are wrong answers
    found = against_baselines({"broken": broken}, {"random": GOOD})["broken", "random"]
    assert (found.questions, found.difference.mean) == (12, -0.5)


def test_a_seed_that_failed_is_not_in_the_mean_of_a_baseline() -> None:
    half = scores([1.0] * 12, [0.0] * 12)
    half.answered[1] = False
    found = against_baselines({"good": GOOD}, {"random": half})["good", "random"]
    assert (found.questions, found.difference.mean) == (12, 0.0)
    assert half.accuracy().mean == 0.5


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


def test_a_question_that_raised_an_error_is_not_hard() -> None:
    mask, hard = hard_questions(scores([1.0] * 4), scores([0.0, 0.0, 1.0, 1.0], failed=[0]))
    assert mask is not None
    assert mask.tolist() == [False, True, False, False]
    assert hard.questions == 1


def test_an_empty_hard_subset_has_a_reason() -> None:
    answers = scores([1.0, 0.0])
    for unpruned, downsampled, reason in [
        (answers, answers, "`downsample` answers everything that the unpruned model does"),
        (answers, None, "`downsample` has no result at this budget"),
        (None, answers, "the unpruned model has no result"),
        (scores([0.0, 0.0]), answers, "the unpruned model answers nothing right"),
    ]:
        mask, hard = hard_questions(unpruned, downsampled)
        assert mask is None
        assert (hard.questions, hard.reason) == (0, reason)
