"""Duplications against explicit features and kernels, column by column and whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import dual
from tokenprune.dual.duplication import DenseDuplication, Duplication
from tokenprune.errors import ConfigError


def keys_and_values(seed: int, units: int = 2, tokens: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(units, 2, tokens, 8, generator=generator),
        torch.randn(units, 2, tokens, 8, generator=generator),
    )


def test_it_is_the_normalised_inner_product_of_two_updates() -> None:
    """Mean over heads of <Delta_i, Delta_j> / (|Delta_i| |Delta_j|) with kappa(a, b) = exp(a.b / sqrt d)."""
    keys, values = keys_and_values(0)
    found = dual.value_key_duplication(values, keys).full()
    for unit in range(2):
        expected = torch.zeros(7, 7, dtype=torch.double)
        for head in range(2):
            key, value = keys[unit, head].double(), values[unit, head].double()
            gram = (key @ key.T / math.sqrt(8)).exp() * (value @ value.T)
            norm = gram.diagonal().sqrt()
            expected += (gram / norm[:, None] / norm[None, :]).clamp_min(0) / 2
        torch.testing.assert_close(found[unit].double(), expected, rtol=1e-4, atol=1e-6)


def test_the_metric_form_with_isotropic_queries_is_the_published_one() -> None:
    """Sigma = sqrt(d) I is the published kernel; queries at +-c e_i have exactly that covariance."""
    keys, values = keys_and_values(1, units=1)
    reach = math.sqrt(8 * math.sqrt(8))
    queries = torch.cat((reach * torch.eye(8), -reach * torch.eye(8))).expand(1, 2, 16, 8)
    metric = dual.metric_duplication(values, keys, queries).full()
    published = dual.value_key_duplication(values, keys, centred_values=True).full()
    torch.testing.assert_close(metric, published, rtol=1e-3, atol=1e-5)


def test_the_metric_ignores_what_no_query_can_see_and_padding() -> None:
    generator = torch.Generator().manual_seed(2)
    keys, values = keys_and_values(2, units=1)
    queries = torch.randn(1, 4, 6, 8, generator=generator)
    queries[..., 0] = 0.0  # nobody looks along the first axis
    moved = keys.clone()
    moved[..., 0] += 5.0 * torch.randn(1, 2, 7, generator=generator)
    reference = dual.metric_duplication(values, keys, queries).full()
    torch.testing.assert_close(dual.metric_duplication(values, moved, queries).full(), reference, rtol=1e-3, atol=1e-3)
    mask = torch.tensor([[True, True, True, True, False, False]])
    junk = torch.where(mask[:, None, :, None], queries, torch.full_like(queries, 99.0))
    torch.testing.assert_close(
        dual.metric_duplication(values, keys, junk, mask).full(),
        dual.metric_duplication(values, keys, queries[:, :, :4]).full(),
        rtol=1e-3,
        atol=1e-4,
    )


def providers(seed: int) -> list[Duplication]:
    keys, values = keys_and_values(seed)
    queries = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(seed))
    return [
        dual.value_key_duplication(values, keys),
        dual.value_key_duplication(values, keys, tau=0.0),
        dual.value_key_duplication(values, keys, tau=2.0, centred_values=True),
        dual.value_key_duplication(values, None),
        dual.metric_duplication(values, keys, queries),
        dual.cosine_duplication(values[:, 0]),
        DenseDuplication(dual.cosine_duplication(values[:, 1], signed=True).full()),
    ]


@given(seed=st.integers(0, 10_000))
def test_columns_and_blocks_are_parts_of_the_whole(seed: int) -> None:
    columns = torch.tensor([[3, 0, 6], [1, 1, 5]])
    rows = torch.tensor([[2, 4], [6, 0]])
    for provider in providers(seed):
        whole = provider.full()
        assert whole.shape == (2, 7, 7)
        assert provider.units == 2
        assert provider.tokens == 7
        for unit in range(2):
            torch.testing.assert_close(provider.block(None, columns)[unit], whole[unit][:, columns[unit]])
            torch.testing.assert_close(provider.block(rows, columns)[unit], whole[unit][rows[unit]][:, columns[unit]])
        torch.testing.assert_close(whole, whole.transpose(1, 2), rtol=1e-5, atol=1e-5)
        assert float(whole.max()) <= 1.0 + 1e-5
        if not isinstance(provider, DenseDuplication):
            assert float(whole.min()) >= 0.0


@given(seed=st.integers(0, 10_000), size=st.floats(0.0, 1000.0))
def test_a_constant_added_to_all_keys_changes_nothing(seed: int, size: float) -> None:
    keys, values = keys_and_values(seed)
    shift = size * torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(seed + 1))
    for tau in (0.0, 1.0):
        torch.testing.assert_close(
            dual.value_key_duplication(values, keys + shift, tau=tau).full(),
            dual.value_key_duplication(values, keys, tau=tau).full(),
            rtol=2e-2,
            atol=5e-3,  # the shifted keys themselves are rounded: 1000 has 6e-5 between neighbours
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_of_the_size_of_real_models(dtype: torch.dtype) -> None:
    """Norm 274 plus a bias of 605: exact copies still are 1, everything is finite."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 12, 128, generator=generator)
    keys = 274.0 * keys / keys.norm(dim=-1, keepdim=True)
    bias = torch.randn(1, 2, 1, 128, generator=generator)
    keys = keys + 605.0 * bias / bias.norm(dim=-1, keepdim=True)
    values = torch.randn(1, 2, 12, 128, generator=generator)
    keys[:, :, 5], values[:, :, 5] = keys[:, :, 2], values[:, :, 2]
    queries = 10.0 * torch.randn(1, 4, 6, 128, generator=generator)
    for provider in (
        dual.value_key_duplication(values.to(dtype), keys.to(dtype)),
        dual.value_key_duplication(values.to(dtype), keys.to(dtype), tau=0.0),
        dual.metric_duplication(values.to(dtype), keys.to(dtype), queries.to(dtype)),
    ):
        whole = provider.full()
        assert torch.isfinite(whole).all()
        assert float(whole[0, 2, 5]) == pytest.approx(1.0, abs=2e-2)


def test_the_bandwidth_from_the_data() -> None:
    """Points on a line with nearest neighbours 1, 1, 1, 2, 2: squared 1, 1, 1, 4, 4; the median is 1."""
    keys = torch.tensor([0.0, 1.0, 2.0, 4.0, 6.0]).view(1, 1, 5, 1)
    assert dual.nearest_neighbour_bandwidth(keys).item() == pytest.approx(1.0)
    values = torch.ones(1, 1, 5, 1)
    found = dual.value_key_duplication(values, keys, tau=0.0).full()
    assert float(found[0, 0, 1]) == pytest.approx(math.exp(-0.5))
    assert float(found[0, 0, 3]) == pytest.approx(math.exp(-8.0))


def test_equal_zero_and_single_tokens_give_no_nan() -> None:
    same = torch.ones(1, 2, 6, 8)
    for keys, values in ((same, same), (0 * same, 0 * same), (same[:, :, :1], same[:, :, :1])):
        for tau in (0.0, 1.0):
            whole = dual.value_key_duplication(values, keys, tau=tau, centred_values=False).full()
            assert torch.isfinite(whole).all()
        assert torch.isfinite(dual.metric_duplication(values, keys, keys).full()).all()
    assert float(dual.value_key_duplication(same, same).full().min()) == pytest.approx(1.0)
    assert float(dual.value_key_duplication(0 * same, same).full().max()) == 0.0


def test_negative_cosines_count_only_where_asked() -> None:
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert dual.cosine_duplication(features).full()[0, 0, 1].item() == 0.0
    assert dual.cosine_duplication(features, signed=True).full()[0, 0, 1].item() == -1.0


def test_misuse_is_refused() -> None:
    keys, values = keys_and_values(0)
    with pytest.raises(ConfigError, match="tau must be >= 0"):
        dual.value_key_duplication(values, keys, tau=-1.0)
    with pytest.raises(ConfigError, match="needs values or keys"):
        dual.KernelDuplication()
