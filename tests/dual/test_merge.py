"""Where dropped tokens go, and what the kept ones then weigh."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import dual
from tokenprune.correction import mass_corrected
from tokenprune.dual.duplication import DenseDuplication
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept


@given(seed=st.integers(0, 10_000), k=st.integers(1, 8))
def test_assignment_against_the_rule(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = dual.cosine_duplication(torch.randn(2, 8, 3, generator=generator), signed=True)
    kept = torch.stack([torch.randperm(8, generator=generator)[:k] for _ in range(2)])
    found = dual.assign(similarity, kept)
    whole = similarity.full()
    for unit in range(2):
        slots = kept[unit].tolist()
        for token in range(8):
            if token in slots:
                assert slots[found[unit, token]] == token
            else:
                best = max(range(k), key=lambda slot: (float(whole[unit, token, slots[slot]]), -slot))
                assert int(found[unit, token]) == best


def test_represented_counts_and_masses() -> None:
    assignment = torch.tensor([[0, 0, 1, 1, 1]])
    kept = torch.tensor([[1, 3]])
    assert dual.represented(assignment, kept).tolist() == [[2.0, 3.0]]
    mass = torch.tensor([[4.0, 2.0, 1.0, 2.0, 3.0]])
    assert dual.represented(assignment, kept, mass).tolist() == [[1 + 4 / 2, 1 + (1 + 3) / 2]]
    assert dual.represented(assignment, kept, cap=2.5).tolist() == [[2.0, 2.5]]
    with pytest.raises(ConfigError, match="0 or >= 1"):
        dual.represented(assignment, kept, cap=0.5)
    assert torch.isfinite(dual.represented(assignment, kept, torch.zeros(1, 5))).all()


def test_the_counts_of_all_kept_tokens_sum_to_the_number_of_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = dual.cosine_duplication(torch.randn(3, 20, 4, generator=generator))
    kept = torch.stack([torch.randperm(20, generator=generator)[:6] for _ in range(3)])
    assert dual.represented(dual.assign(similarity, kept), kept).sum(dim=-1).tolist() == [20.0] * 3


@pytest.mark.parametrize("double", [False, True])
def test_mean_map(double: bool) -> None:
    hidden = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    assignment = torch.tensor([[0, 0, 1, -1, 0]])
    found = dual.mean_map(assignment, torch.tensor([[1, 2]]), double=double)[0] @ hidden
    expected = [2 + (1 + 16) / 2, 4.0] if double else [(1 + 2 + 16) / 3, 4.0]
    assert found.flatten().tolist() == [pytest.approx(value) for value in expected]


def test_stride_targets() -> None:
    rest = torch.arange(10)[None] * 2
    assert dual.stride_targets(rest, 3).tolist() == [[0, 6, 12]]
    assert dual.stride_targets(rest, 7).tolist() == [[0, 2, 4, 6, 8, 10, 12]]
    assert dual.stride_targets(rest, 10).tolist() == rest.tolist()


def test_mass_correction_of_a_decision() -> None:
    """Ragged units, K = 0, merged rows and rows that carry weights already."""
    labels = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    similarity = DenseDuplication((labels[:, :, None] == labels[:, None, :]).float())
    merge = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    decision = Decision(
        (
            Kept(torch.tensor([2, 3])),
            Kept(torch.tensor([0, 1, 2])),
            Kept(torch.tensor([1, 3]), merge=merge.to_sparse()),
            Kept(torch.empty(0, dtype=torch.long)),
        )
    )
    corrected = mass_corrected(decision, similarity)
    weights = [kept.log_weights for kept in corrected.units]
    torch.testing.assert_close(weights[0], torch.tensor([math.log(3), 0.0]))
    torch.testing.assert_close(weights[1], torch.tensor([0.0, math.log(2), 0.0]))
    torch.testing.assert_close(weights[2], torch.tensor([math.log(2), 0.0]))
    assert weights[3] is None
    capped = mass_corrected(decision, similarity, cap=2.0).units[0].log_weights
    torch.testing.assert_close(capped, torch.tensor([math.log(2), 0.0]))
    again = mass_corrected(corrected, DenseDuplication(torch.ones(4, 4, 4)))
    assert again.units[0].log_weights is weights[0]
