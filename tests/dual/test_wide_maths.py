"""The maths of the wider zoo against brute force and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from tokenprune import dual
from tokenprune.errors import BudgetError, ConfigError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_index_sets() -> None:
    taken = torch.tensor([[4, 0], [1, 2]])
    assert dual.complement(taken, 5).tolist() == [[1, 2, 3], [0, 3, 4]]
    assert dual.member_mask(taken, 5).tolist() == [[True, False, False, False, True], [False, True, True, False, False]]
    assert torch.equal(dual.one_hot(taken, 5), torch.eye(5)[taken])


def test_rank_in_group_counts_the_better_ones_of_the_group() -> None:
    scores = torch.randint(0, 4, (3, 20), generator=torch.Generator().manual_seed(1)).float()  # many ties
    groups = torch.tensor([0, 1, 2, 1] * 5)
    expected = [
        [
            sum(groups[j] == groups[i] and (row[j] > row[i] or (row[j] == row[i] and j < i)) for j in range(20))
            for i in range(20)
        ]
        for row in scores
    ]
    assert dual.rank_in_group(scores, groups).tolist() == [[int(rank) for rank in row] for row in expected]


def test_capped_top_k() -> None:
    scores, groups = torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.0]]), torch.tensor([0, 0, 0, 1, 1])
    assert dual.capped_top_k(scores, groups, 2, 3).tolist() == [[0, 1, 3]]
    assert dual.capped_top_k(scores, groups, 3, 3).tolist() == [[0, 1, 2]]
    with pytest.raises(BudgetError, match="need more than 2"):
        dual.capped_top_k(scores, groups, 1, 3)


def test_split_budget_is_proportional_exact_and_within_the_room() -> None:
    weights, room = torch.tensor([[6.0, 3.0, 1.0]]), torch.tensor([100, 100, 100])
    assert dual.split_budget(weights, 10, room).tolist() == [[6, 3, 1]]
    assert dual.split_budget(weights, 12, room).tolist() == [[8, 3, 1]]  # 7.2, 3.6, 1.2: the remainder to the heaviest
    assert dual.split_budget(weights, 10, torch.tensor([2, 100, 100])).tolist() == [[2, 6, 2]]
    for seed in range(20):
        weights = normal(4, 7, seed=seed).exp()
        room = torch.randint(0, 9, (7,), generator=torch.Generator().manual_seed(seed))
        for count in (0, 1, int(room.sum()) // 2, int(room.sum())):
            quota = dual.split_budget(weights, count, room)
            assert (quota.sum(dim=-1) == count).all()
            assert ((quota >= 0) & (quota <= room)).all()
    assert dual.split_budget(torch.zeros(1, 4), 6, torch.full((4,), 3)).sum() == 6


def test_density_peaks_finds_blobs_and_breaks_ties_by_index() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    label = torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 0])
    points = centres[label] + 0.1 * normal(9, 2)
    found, assignment = dual.density_peaks(points[None], 3, neighbours=2)
    assert sorted(label[found[0]].tolist()) == [0, 1, 2]
    assert label[found[0][assignment[0]]].tolist() == label.tolist()
    same, slots = dual.density_peaks(torch.zeros(1, 5, 3), 2, neighbours=2)
    assert same[0, 0] == 0
    assert slots[0, same[0]].tolist() == [0, 1]
    noise = torch.tensor([[0.0, 0.0, 1e-6, 0.0, 0.0]])
    assert dual.density_peaks(normal(1, 5, 3).mul(0.0), 1, neighbours=1, noise=noise)[0].tolist() == [[0]]
    with pytest.raises(ConfigError):
        dual.density_peaks(points[None], 10, neighbours=3)


def test_weighted_gain_is_the_greedy_maximum() -> None:
    features, weight = normal(2, 12, 5), normal(2, 12, seed=1).exp()
    similarity = dual.cosine_duplication(features, signed=True)
    matrix = similarity.full()
    for combine in ("multiply", "add"):
        picks = dual.weighted_gain(weight, similarity, 6, combine=combine)  # type: ignore[arg-type]
        for unit in range(2):
            chosen: list[int] = []
            for pick in picks[unit].tolist():
                covered = matrix[unit][:, chosen].amax(dim=-1).clamp_min(0.0) if chosen else torch.zeros(12)
                gains = {}
                for i in set(range(12)) - set(chosen):
                    added = float((matrix[unit][i] - covered).clamp_min(0.0).sum())
                    gains[i] = (
                        float(weight[unit, i]) * added if combine == "multiply" else float(weight[unit, i]) + added
                    )
                assert gains[pick] == pytest.approx(max(gains.values()), rel=1e-5)
                chosen.append(pick)
    with pytest.raises(BudgetError):
        dual.weighted_gain(weight, similarity, 13)
    with pytest.raises(ConfigError):
        dual.weighted_gain(weight, similarity, 3, combine="max")  # type: ignore[arg-type]


def test_propagation_conserves_weight_and_ignores_weak_edges() -> None:
    weight = normal(2, 9).abs()
    cosines = dual.cosine_duplication(normal(2, 9, 3), signed=True)
    similarity = cosines.full()
    walked, degree = dual.propagated(weight, cosines, threshold=0.5, temperature=0.03, steps=5)
    torch.testing.assert_close(walked.sum(dim=-1), weight.sum(dim=-1))
    assert torch.equal(degree, (similarity >= 0.5).sum(dim=-1).float())
    apart = dual.DenseDuplication(torch.eye(9).expand(2, 9, 9))
    alone, ones = dual.propagated(weight, apart, threshold=0.5, temperature=0.03, steps=5)
    torch.testing.assert_close(alone, weight)
    assert torch.equal(ones, torch.ones(2, 9))
    zero = dual.DenseDuplication(torch.zeros(2, 9, 9))
    nowhere, _ = dual.propagated(weight, zero, threshold=0.5, temperature=0.03, steps=5)
    torch.testing.assert_close(nowhere, weight)


def test_the_rotary_response_is_read_off_any_vectors() -> None:
    width, base = 16, 10000.0
    frequency = base ** (-torch.arange(0, width, 2).double() / width)

    def tables(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = (positions.double()[:, None] * frequency).repeat(1, 2)[None]
        return angle.cos().float(), angle.sin().float()

    rows, columns = torch.tensor([60, 61]), torch.arange(10, 40)
    queries, keys = normal(1, 4, 2, width), normal(1, 2, 30, width, seed=1)
    rotated = dual.rotate(queries, *tables(rows)), dual.rotate(keys, *tables(columns))
    found = dual.rotary_response((rotated[0], queries), (rotated[1], keys))
    ones = (
        dual.rotate(torch.ones(1, 1, 2, width), *tables(rows)),
        dual.rotate(torch.ones(1, 1, 30, width), *tables(columns)),
    )
    torch.testing.assert_close(
        found, (ones[0] @ ones[1].transpose(-1, -2))[:, 0] / math.sqrt(width), rtol=1e-3, atol=1e-4
    )
    zero = torch.zeros_like(keys)
    assert torch.isfinite(dual.rotary_response((rotated[0], queries), (zero, zero))).all()


def test_transported_mass_sums_to_one_and_ends_with_the_columns() -> None:
    rows, cost = normal(2, 8).abs(), normal(2, 8, 8, seed=1).abs()
    mass = dual.transported_mass(rows, torch.ones(2, 8), cost, epsilon=0.1, iterations=3)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones(2))
    share = rows / rows.sum(dim=-1, keepdim=True)
    assert not torch.allclose(mass, share, atol=1e-3)
    converged = dual.transported_mass(rows, torch.ones(2, 8), cost, epsilon=1.0, iterations=200)
    torch.testing.assert_close(converged, share, rtol=1e-3, atol=1e-5)
    even = dual.transported_mass(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4, 4), epsilon=0.1, iterations=1)
    torch.testing.assert_close(even, torch.full((1, 4), 0.25))
    with pytest.raises(ConfigError):
        dual.transported_mass(rows, rows, cost, epsilon=0.0, iterations=1)


def test_outliers() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 100.0, 200.0, 3.0, 2.0], [1.0] * 9])
    assert dual.outliers(scores).tolist() == [2, 0]
