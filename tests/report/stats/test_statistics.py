from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenprune.report.stats.comparisons import holm, sign_flip_p
from tokenprune.report.stats.intervals import Interval, paired_difference, paired_ratio, score_interval

ANSWERS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=40)
DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=40)


def own(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def ends(found: Interval) -> tuple[float, float]:
    assert found.bounds is not None
    return found.bounds


def width(found: Interval) -> float:
    low, high = ends(found)
    return high - low


def holds(found: Interval, truth: float) -> bool:
    low, high = ends(found)
    return low - 1e-12 <= truth <= high + 1e-12


def answers(
    random: np.random.Generator, cells: list[float], pictures: int, size: int = 1, together: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two pruners' answers from the chances of (both right, only the first, only the second, none).

    Of each picture all questions go the same way with the chance `together`.
    """
    alike = np.repeat(random.choice(4, p=cells, size=pictures)[:, None], size, axis=1)
    apart = random.choice(4, p=cells, size=(pictures, size))
    drawn = np.where(random.random((pictures, 1)) < together, alike, apart).ravel()
    return np.isin(drawn, [0, 1]).astype(float), np.isin(drawn, [0, 2]).astype(float), np.arange(len(drawn)) // size


@pytest.mark.parametrize(("right", "questions"), [(16, 16), (0, 16), (61, 64), (103, 105), (40, 105)])
def test_right_or_wrong_answers_have_wilsons_interval(right: int, questions: int) -> None:
    found = score_interval([1.0] * right + [0.0] * (questions - right), own(questions))
    theirs = stats.binomtest(right, questions).proportion_ci(method="wilson")
    assert found.mean == pytest.approx(right / questions)
    assert ends(found) == pytest.approx((theirs.low, theirs.high))


def test_questions_that_go_together_count_as_one_per_picture() -> None:
    """Ten copies of each question on one picture: the interval of the pictures, widened by Student's quantile."""
    scores = [1.0] * 30 + [0.0] * 10
    copied = score_interval(np.repeat(scores, 10), [str(place // 10) for place in range(400)])
    pictures = stats.binomtest(30, 40).proportion_ci(method="wilson")
    wider = stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975)
    assert width(copied) == pytest.approx((pictures.high - pictures.low) * wider, rel=0.03)


def test_questions_that_differ_within_a_picture_earn_no_narrower_interval() -> None:
    found = score_interval([1.0, 0.0] * 40, [str(place // 2) for place in range(80)])
    assert width(found) >= width(score_interval([1.0, 0.0] * 40, own(80)))


def test_means_over_seeds_vary_less_than_answers() -> None:
    random = np.random.default_rng(8)
    seeds = (random.random((9, 100)) < 0.8).astype(float)
    assert width(score_interval(seeds.mean(axis=0), own(100))) < 0.5 * width(score_interval(seeds[0], own(100)))
    # where nothing varies, nothing tells how much it would
    steady = ends(score_interval([0.5] * 40, own(40)))
    assert steady == pytest.approx(stats.binomtest(20, 40).proportion_ci(method="wilson"))


@pytest.mark.parametrize("pictures", [1, 4])
def test_fewer_than_five_pictures_have_no_interval(pictures: int) -> None:
    scores, clusters = [1.0, 0.0] * 2 * pictures, own(pictures) * 4
    assert score_interval(scores, clusters).bounds is None
    assert paired_difference(scores, scores[::-1], clusters).bounds is None
    assert paired_ratio(scores, scores, clusters) == Interval(1.0, None, None)


@pytest.mark.parametrize(
    ("pictures", "size", "together", "accuracy"),
    [(16, 1, 0.0, 0.95), (64, 1, 0.0, 0.95), (105, 1, 0.0, 0.98), (105, 1, 0.0, 0.6), (21, 5, 0.3, 0.95)],
)
def test_the_interval_of_an_accuracy_holds_the_truth(
    pictures: int, size: int, together: float, accuracy: float
) -> None:
    """2,000 times, also near 100 %, where a plain bootstrap gives 55 % (16 questions at 95 %)."""
    random = np.random.default_rng(9)
    cells = [accuracy, 0.0, 0.0, 1.0 - accuracy]
    held = 0
    for _ in range(2000):
        scores, _, clusters = answers(random, cells, pictures, size, together)
        held += holds(score_interval(scores, clusters), accuracy)
    assert 0.93 <= held / 2000 <= 0.985


@pytest.mark.parametrize(
    ("pictures", "size", "together", "cells"),
    [
        (16, 1, 0.0, [0.92, 0.0, 0.04, 0.04]),  # near the ceiling, hardly anything differs
        (64, 1, 0.0, [0.96, 0.005, 0.025, 0.01]),
        (105, 1, 0.0, [0.91, 0.01, 0.04, 0.04]),
        (16, 1, 0.0, [0.77, 0.02, 0.18, 0.03]),  # near the ceiling, much is lost
        (64, 1, 0.0, [0.60, 0.01, 0.39, 0.0]),
        (105, 1, 0.0, [0.45, 0.15, 0.25, 0.15]),
        (35, 3, 0.8, [0.91, 0.01, 0.04, 0.04]),
        (21, 5, 0.3, [0.77, 0.02, 0.18, 0.03]),
    ],
)
def test_paired_intervals_hold_the_truth(pictures: int, size: int, together: float, cells: list[float]) -> None:
    random = np.random.default_rng(10)
    both, ours_alone, theirs_alone, _ = cells
    difference, ratio = ours_alone - theirs_alone, (both + ours_alone) / (both + theirs_alone)
    held = np.zeros(2)
    for _ in range(1000):
        drawn = answers(random, cells, pictures, size, together)
        held += holds(paired_difference(*drawn), difference), holds(paired_ratio(*drawn), ratio)
    assert (held / 1000 >= 0.92).all()  # 93 % and more in the long run; 1,000 draws know it to 0.8 points


def test_equal_answers_have_an_interval_that_narrows_with_the_questions() -> None:
    """What never differed in 16 questions may differ in one of the next 16; in 105 it is known better."""
    few, many = ([1.0] * count for count in (16, 105))
    assert 0.15 < width(paired_difference(few, few, own(16))) < 0.35
    assert 0.02 < width(paired_difference(many, many, own(105))) < 0.06
    assert 0.02 < width(paired_ratio(many, many, own(105))) < 0.06


def test_interval_and_test_do_not_contradict_each_other_flagrantly() -> None:
    """Where one of the two is clear (McNemar's p below 0.02 or above 0.15), the other says the same."""
    for questions in (16, 64, 105):
        for won in range(13):
            for lost in range(13 - won):
                if won + lost > questions:
                    continue
                ours = [1.0] * won + [0.0] * (questions - won)
                theirs = [0.0] * won + [1.0] * lost + [0.0] * (questions - won - lost)
                p = sign_flip_p(np.subtract(ours, theirs), own(questions))
                excludes = not holds(paired_difference(ours, theirs, own(questions)), 0.0)
                assert excludes or p > 0.02, (questions, won, lost)
                assert not excludes or p < 0.15, (questions, won, lost)


def test_where_much_differs_the_intervals_are_scipys_bootstrap() -> None:
    random = np.random.default_rng(3)
    base = (random.random(400) < 0.8).astype(float)
    ours = np.where(random.random(400) < 0.3, 1.0 - base, base)

    def ratio(above: np.ndarray, below: np.ndarray, axis: int = -1) -> np.ndarray:
        return above.sum(axis=axis) / below.sum(axis=axis)

    def difference(above: np.ndarray, below: np.ndarray, axis: int = -1) -> np.ndarray:
        return (above - below).mean(axis=axis)

    for found, statistic in ((paired_ratio, ratio), (paired_difference, difference)):
        mine = found(ours, base, own(400))
        theirs = stats.bootstrap(
            (ours, base), statistic, paired=True, vectorized=True, method="percentile", n_resamples=9999, rng=1
        ).confidence_interval
        assert mine.mean == pytest.approx(statistic(ours, base))
        assert ends(mine) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_pictures_of_different_size_agree_with_scipy() -> None:
    """A mean over questions, drawn by picture, is a ratio of the pictures' sums and sizes."""
    random = np.random.default_rng(4)
    sizes = random.integers(1, 5, size=300)
    clusters = np.repeat(np.arange(300), sizes)
    ours, theirs = (random.integers(0, 2, size=len(clusters)).astype(float) for _ in range(2))
    totals = np.bincount(clusters, weights=ours - theirs)
    found = paired_difference(ours, theirs, clusters)
    expected = stats.bootstrap(
        (totals, sizes.astype(float)),
        lambda above, below, axis=-1: above.sum(axis=axis) / below.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=9999,
        rng=1,
    ).confidence_interval
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert ends(found) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_the_test_errs_at_about_the_nominal_rate() -> None:
    random = np.random.default_rng(6)
    rejected = sum(sign_flip_p(random.choice([1.0, -1.0, 0.5, -0.5, 0.0], size=60), own(60)) < 0.05 for _ in range(400))
    assert 0.02 <= rejected / 400 <= 0.08


def test_the_order_of_the_questions_changes_no_interval() -> None:
    ours, theirs = [0.0, 1.0, 1.0, 0.5, 1.0, 1.0], [0.0, 1.0, 0.0, 0.5, 0.0, 1.0]
    for interval in (paired_difference, paired_ratio):
        first, turned = interval(ours, theirs, own(6)), interval(ours[::-1], theirs[::-1], own(6))
        assert turned.mean == pytest.approx(first.mean)
        assert ends(turned) == pytest.approx(ends(first))


def test_the_paired_interval_of_single_questions_is_agresti_and_mins() -> None:
    """By hand: 0.5 is added to each of the four counts; the quantile is Student's for the number of questions."""
    both, ours_alone, theirs_alone, none = 30, 5, 2, 3
    ours = [1.0] * both + [1.0] * ours_alone + [0.0] * theirs_alone + [0.0] * none
    theirs = [1.0] * both + [0.0] * ours_alone + [1.0] * theirs_alone + [0.0] * none
    b, c, n = ours_alone + 0.5, theirs_alone + 0.5, 42
    half = stats.t.ppf(0.975, 39) * np.sqrt(b + c - (b - c) ** 2 / n) / n
    assert ends(paired_difference(ours, theirs, own(40))) == pytest.approx(((b - c) / n - half, (b - c) / n + half))


def test_with_many_questions_the_paired_interval_is_that_of_the_clustered_standard_error() -> None:
    random = np.random.default_rng(5)
    ours, theirs, clusters = answers(random, [0.5, 0.2, 0.15, 0.15], 600, 4, 0.5)
    totals = np.bincount(clusters, weights=ours - theirs - (ours - theirs).mean())
    error = np.sqrt(600 / 599 * (totals**2).sum()) / len(ours)
    found = paired_difference(ours, theirs, clusters)
    assert width(found) == pytest.approx(2 * stats.t.ppf(0.975, 599) * error, rel=0.01)


@given(ANSWERS)
def test_the_interval_of_a_score_does_not_depend_on_the_order(scores: list[float]) -> None:
    found = score_interval(scores, own(len(scores)))
    low, high = ends(found)
    assert 0.0 <= low <= found.mean <= high <= 1.0
    assert low < high
    assert ends(score_interval(scores[::-1], own(len(scores)))) == pytest.approx((low, high))


@given(ANSWERS, st.randoms(use_true_random=False))
def test_a_difference_lies_in_an_interval_that_is_never_a_point(scores: list[float], random: Random) -> None:
    theirs = random.sample(scores, len(scores))
    found = paired_difference(scores, theirs, own(len(scores)))
    low, high = ends(found)
    assert -1.0 <= low <= found.mean <= high <= 1.0
    assert low < high


def test_questions_about_one_picture_are_one_draw() -> None:
    """Ten copies of each question on the same picture must not make the interval narrower."""
    random = np.random.default_rng(1)
    ours, theirs = random.integers(0, 2, size=(2, 40)).astype(float)
    single = paired_difference(ours, theirs, own(40))
    clusters = [str(place // 10) for place in range(400)]
    copied = paired_difference(np.repeat(ours, 10), np.repeat(theirs, 10), clusters)
    naive = paired_difference(np.repeat(ours, 10), np.repeat(theirs, 10), own(400))
    assert ends(copied) == pytest.approx(ends(single), abs=0.03)
    assert width(naive) < 0.5 * width(copied)


def test_pairing_narrows_the_interval() -> None:
    random = np.random.default_rng(2)
    base = random.integers(0, 2, size=200).astype(float)
    ours = np.where(random.random(200) < 0.05, 1 - base, base)
    assert width(paired_difference(ours, base, own(200))) < 0.6 * width(score_interval(ours, own(200)))


@pytest.mark.parametrize("scores", [[], [1.0, 2.0]])
def test_bad_input(scores: list[float]) -> None:
    for call in (
        lambda: score_interval(scores, ["a"]),
        lambda: paired_difference(scores, [1.0], ["a"]),
        lambda: paired_ratio([1.0], scores, ["a"]),
    ):
        with pytest.raises(ValueError, match="clusters"):
            call()


def test_a_ratio_to_nothing_is_an_error_and_one_to_little_is_wide() -> None:
    with pytest.raises(ValueError, match="denominator"):
        paired_ratio([1.0, 0.0], [0.0, 0.0], own(2))
    found = paired_ratio([1.0] + [0.0] * 9, [1.0] + [0.0] * 9, own(10))
    low, high = ends(found)
    assert np.isfinite(low)
    assert low <= 1.0 <= high < np.inf


def test_sign_flips_are_exact_where_few() -> None:
    differences = [1.0, 1.0, -0.5, 1.0, 1.0, 0.0, 1.0]
    exact = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences, own(7)) == pytest.approx(exact)


def test_right_or_wrong_answers_give_mcnemars_exact_test() -> None:
    differences = [1.0] * 30 + [-1.0] * 14 + [0.0] * 60
    assert sign_flip_p(differences, own(104)) == pytest.approx(stats.binomtest(14, 44).pvalue)
    assert sign_flip_p([0.0] * 20, own(20)) == 1.0
    assert sign_flip_p([1.0] * 60, own(60)) == pytest.approx(2.0**-59)


def test_random_flips_agree_with_scipy() -> None:
    random = np.random.default_rng(7)
    differences = random.choice([1.0, -1.0, 0.5, -0.5, 0.25], p=[0.35, 0.2, 0.2, 0.15, 0.1], size=50)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=1).pvalue
    assert sign_flip_p(differences, own(50)) == pytest.approx(theirs, abs=0.02)


@settings(max_examples=50)
@given(DIFFERENCES)
def test_swapping_the_two_pruners_or_the_questions_changes_no_p_value(differences: list[float]) -> None:
    clusters = own(len(differences))
    found = sign_flip_p(differences, clusters)
    assert 0.0 < found <= 1.0
    assert sign_flip_p(differences[::-1], clusters) == found
    assert sign_flip_p([-value for value in differences], clusters) == pytest.approx(found, abs=0.03)


def test_holm_by_hand() -> None:
    # sorted: 0.01 x 4, 0.03 x 3, 0.04 x 2 (never below the one before), 0.5 x 1
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_keeps_the_order_and_is_below_bonferroni(values: list[float]) -> None:
    adjusted = holm(values)
    for raw, found in zip(values, adjusted, strict=True):
        assert raw <= found <= min(1.0, raw * len(values)) + 1e-12 or found == max(adjusted)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
