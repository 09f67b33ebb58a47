from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenprune.report.statistics import bootstrap_mean, bootstrap_ratio, holm, sign_flip_p

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40)
DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=40)


def own(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def test_bootstrap_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).integers(0, 2, size=150).astype(float)
    ours = bootstrap_mean(scores.tolist(), own(150))
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert ours.mean == pytest.approx(scores.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_the_ratio_of_paired_scores_agrees_with_scipy() -> None:
    random = np.random.default_rng(3)
    base = (random.random(120) < 0.8).astype(float)
    ours = base * (random.random(120) < 0.9)

    def ratio(above: np.ndarray, below: np.ndarray, axis: int = -1) -> np.ndarray:
        return above.sum(axis=axis) / below.sum(axis=axis)

    found = bootstrap_ratio(ours, base, own(120))
    theirs = stats.bootstrap(
        (ours, base), ratio, paired=True, vectorized=True, method="percentile", n_resamples=9999, rng=1
    ).confidence_interval
    assert found.mean == pytest.approx(ours.sum() / base.sum())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_pictures_of_different_size_agree_with_scipy() -> None:
    """A mean over questions, drawn by picture, is a ratio of the pictures' sums and sizes."""
    random = np.random.default_rng(4)
    sizes = random.integers(1, 5, size=60)
    clusters = [str(picture) for picture, size in enumerate(sizes) for _ in range(size)]
    scores = random.integers(0, 2, size=len(clusters)).astype(float)
    totals = np.bincount([int(name) for name in clusters], weights=scores)
    found = bootstrap_mean(scores, clusters)
    theirs = stats.bootstrap(
        (totals, sizes.astype(float)),
        lambda above, below, axis=-1: above.sum(axis=axis) / below.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=9999,
        rng=1,
    ).confidence_interval
    assert found.mean == pytest.approx(scores.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_interval_holds_the_truth_at_about_the_nominal_rate() -> None:
    """Paired differences with a known mean, 400 times: 95 % give or take what chance and 100 pictures allow."""
    random = np.random.default_rng(5)
    truth = 0.20 - 0.08  # wins minus losses
    held = 0
    for _ in range(400):
        differences = random.choice([1.0, -1.0, 0.0], p=[0.20, 0.08, 0.72], size=100)
        found = bootstrap_mean(differences, own(100))
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_the_test_errs_at_about_the_nominal_rate() -> None:
    random = np.random.default_rng(6)
    rejected = sum(sign_flip_p(random.choice([1.0, -1.0, 0.5, -0.5, 0.0], size=60), own(60)) < 0.05 for _ in range(400))
    assert 0.02 <= rejected / 400 <= 0.08


def test_bootstrap_is_reproducible() -> None:
    scores = [0.0, 1.0, 1.0, 0.5]
    assert bootstrap_mean(scores, own(4)) == bootstrap_mean(scores, own(4))
    assert bootstrap_mean(scores, own(4), seed=1).mean == bootstrap_mean(scores, own(4)).mean


@given(SCORES)
def test_the_interval_lies_within_the_scores_and_does_not_depend_on_their_order(scores: list[float]) -> None:
    found = bootstrap_mean(scores, own(len(scores)))
    assert min(scores) <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= max(scores)
    assert bootstrap_mean(scores[::-1], own(len(scores))) == found


def test_questions_about_one_picture_are_one_draw() -> None:
    """Ten copies of each question on the same picture must not make the interval narrower."""
    scores = np.random.default_rng(1).integers(0, 2, size=40).astype(float).tolist()
    single = bootstrap_mean(scores, own(40))
    copied = bootstrap_mean([score for score in scores for _ in range(10)], [str(i // 10) for i in range(400)])
    naive = bootstrap_mean([score for score in scores for _ in range(10)], own(400))
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high), abs=0.02)
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_pairing_narrows_the_interval() -> None:
    random = np.random.default_rng(2)
    base = random.integers(0, 2, size=200).astype(float)
    ours = np.where(random.random(200) < 0.05, 1 - base, base)
    paired = bootstrap_mean((ours - base).tolist(), own(200))
    alone = bootstrap_mean(ours.tolist(), own(200))
    assert paired.high - paired.low < 0.6 * (alone.high - alone.low)
    assert paired.low <= paired.mean <= paired.high


@pytest.mark.parametrize("scores", [[], [1.0, 2.0]])
def test_bad_input(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="clusters"):
        bootstrap_mean(scores, ["a"])


def test_a_ratio_to_nothing_is_an_error_and_draws_without_a_denominator_are_left_out() -> None:
    with pytest.raises(ValueError, match="denominator"):
        bootstrap_ratio([1.0, 0.0], [0.0, 0.0], own(2))
    found = bootstrap_ratio([1.0, 0.0], [1.0, 0.0], own(2))  # a quarter of the draws have no denominator
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


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
