"""Duplication left, coverage and regret of kept sets, against the definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.metrics.by_hand import VISUAL, B, D, G, H, captured, cut, output_by_hand
from tokenprune.metrics.lens import Cut, KeptTokens
from tokenprune.metrics.subsets import SubsetLens

N = len(VISUAL)


def duplication_by_hand(sample: int) -> torch.Tensor:
    """cos(v) exp(-||k - k'||^2 / (2 sqrt d)), negative cosines as 0, mean over heads, (N, N)."""
    layer = captured(0)
    total = torch.zeros(N, N)
    for head in range(G):
        values, keys = layer.values[sample, head, list(VISUAL)], layer.keys[sample, head, list(VISUAL)]
        cosine = torch.nn.functional.cosine_similarity(values[:, None], values[None], dim=-1).clamp_min(0)
        total += cosine * torch.exp(-torch.cdist(keys, keys).square() / (2 * D**0.5)) / G
    return total


def relative_error(sample: int, kept: list[int], weights: dict[int, float] | None = None) -> float:
    whole = output_by_hand(captured(0), sample, list(range(N)), {})
    pruned = output_by_hand(captured(0), sample, kept, weights or {})
    return float(((whole - pruned) ** 2).sum() / (whole**2).sum()) ** 0.5


@pytest.mark.parametrize("kept", [[1, 4], [0, 2, 3], [5]])
def test_figures_are_the_definitions(kept: list[int]) -> None:
    found = SubsetLens(captured(0)).figures([cut(*kept), None])
    assert found is not None
    matrix = duplication_by_hand(0)
    others = [[float(matrix[i, j]) for j in kept if j != i] for i in kept]
    assert found.duplication == pytest.approx(sum(max(row, default=0.0) for row in others) / len(kept), rel=1e-4)
    covered = [max(1.0 if i == j else float(matrix[i, j]) for j in kept) for i in range(N)]
    assert found.coverage == pytest.approx(sum(covered) / N, rel=1e-4)
    best = min(relative_error(0, list(subset)) for subset in itertools.combinations(range(N), len(kept)))
    assert found.regret >= -1e-5
    assert found.regret <= relative_error(0, kept) - best + 1e-4  # the search finds no better than the best
    assert found.regret == pytest.approx(relative_error(0, kept) - best, abs=0.05)


def test_regret_knows_log_weights_and_samples_are_averaged() -> None:
    lens = SubsetLens(captured(0))
    first = lens.figures([cut(1, 4, weights=(0.7, 0.0)), None])
    plain = lens.figures([cut(1, 4), None])
    both = lens.figures([cut(1, 4), cut(0, 2)])
    second = lens.figures([None, cut(0, 2)])
    assert first is not None
    assert plain is not None
    assert both is not None
    assert second is not None
    change = relative_error(0, [1, 4], {1: 0.7}) - relative_error(0, [1, 4])
    assert first.regret - plain.regret == pytest.approx(change, abs=1e-4)
    assert both.duplication == pytest.approx((plain.duplication + second.duplication) / 2)
    assert both.regret == pytest.approx((plain.regret + second.regret) / 2)


def test_the_last_cut_counts() -> None:
    lens = SubsetLens(captured(0))
    twice = KeptTokens((Cut(0, "input", 0, N, (0, 1, 4)), Cut(0, "layer:3", 3, 3, (1, 4))))
    assert lens.figures([twice, None]) == lens.figures([cut(1, 4), None])


@pytest.mark.parametrize("kept", [[None] * B, [cut(1, merged=True), None], [cut(), cut(1)]])
def test_what_cannot_be_measured_is_nothing(kept: list[KeptTokens | None]) -> None:
    assert SubsetLens(captured(0)).figures(kept) is None


def test_keeping_all_has_no_regret_and_covers_all() -> None:
    found = SubsetLens(captured(0)).figures([cut(*range(N))] * B)
    assert found is not None
    assert (found.coverage, found.regret) == (1.0, 0.0)
    assert H // G == 2  # query heads share key-value heads here
