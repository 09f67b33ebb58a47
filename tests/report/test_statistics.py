from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tokenprune.report.statistics import adjust, bootstrap_mean, sign_flip_p


def own(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def test_bootstrap_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).integers(0, 2, size=150).astype(float)
    ours = bootstrap_mean(scores.tolist(), own(150))
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert ours.mean == pytest.approx(scores.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_bootstrap_is_reproducible() -> None:
    scores = [0.0, 1.0, 1.0, 0.5]
    assert bootstrap_mean(scores, own(4)) == bootstrap_mean(scores, own(4))


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


def test_sign_flips_are_exact_where_few() -> None:
    differences = [1.0, 1.0, -1.0, 1.0, 1.0, 0.0, 1.0]
    exact = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences, own(7)) == pytest.approx(exact)
    assert sign_flip_p(differences, own(7)) == pytest.approx(stats.binomtest(1, 6).pvalue)  # McNemar's exact test


def test_sign_flips_by_chance_agree_with_mcnemar() -> None:
    differences = [1.0] * 30 + [-1.0] * 14 + [0.0] * 60
    assert sign_flip_p(differences, own(104)) == pytest.approx(stats.binomtest(14, 44).pvalue, abs=0.006)
    assert sign_flip_p([0.0] * 20, own(20)) == 1.0
    assert sign_flip_p([1.0] * 60, own(60)) == pytest.approx(1 / 10_000)


def test_adjustment_is_benjamini_hochberg() -> None:
    assert adjust([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert adjust([]) == []
