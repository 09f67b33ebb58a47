"""Errors against explicit feature sums and against literally running attention on the subset."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import dual
from tokenprune.errors import BudgetError


def tensors(seed: int, tokens: int = 8, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 4, rows, 8, generator=generator),
        torch.randn(2, 2, tokens, 8, generator=generator),
        torch.randn(2, 2, tokens, 8, generator=generator),
    )


def subset(seed: int, tokens: int) -> Tensor:
    kept = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[:, 0] = True
    return kept


def taylor_features(keys: Tensor, order: int) -> Tensor:
    """Explicit features of exp(a.b): all monomials up to `order`, (N, F)."""
    parts = [torch.ones(keys.shape[0], 1, dtype=keys.dtype)]
    power = parts[0]
    for degree in range(1, order + 1):
        power = (power[:, :, None] * keys[:, None, :]).flatten(1)
        parts.append(power / math.sqrt(math.factorial(degree)))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_dual_error_is_the_norm_of_the_missing_weight(weighted: bool) -> None:
    """||W - W_S||_F with the weight matrix really built, from explicit features of the softmax kernel (d = 2)."""
    generator = torch.Generator().manual_seed(0)
    keys = 0.7 * torch.randn(1, 1, 5, 2, generator=generator)
    values = torch.randn(1, 1, 5, 3, generator=generator)
    kept = torch.tensor([[True, False, True, False, False]])
    log_weights = torch.tensor([[0.5, 9.0, 1.2, 9.0, 9.0]]) if weighted else None
    found = dual.dual_error(keys, values, kept, log_weights, centred=False)
    phi = taylor_features(keys[0, 0].double() / 2**0.25, order=12)
    updates = phi[:, :, None] * values[0, 0].double()[:, None, :]
    weight = torch.tensor([math.exp(0.5), 0.0, math.exp(1.2), 0.0, 0.0]) if weighted else kept[0].double()
    missing = ((1.0 - weight.double())[:, None, None] * updates).sum(dim=0)
    expected = missing.square().sum() / updates.sum(dim=0).square().sum()
    assert float(found.relative()) == pytest.approx(float(expected), rel=1e-4)


def test_the_dual_error_at_its_ends() -> None:
    _, keys, values = tensors(0)
    everything = torch.ones(2, 8, dtype=torch.bool)
    assert float(dual.dual_error(keys, values, everything).relative().max()) == 0.0
    nothing = dual.dual_error(keys, values, ~everything).relative()
    torch.testing.assert_close(nothing, torch.ones_like(nothing))


def test_the_centred_dual_error_does_not_see_a_common_shift() -> None:
    _, keys, values = tensors(1)
    kept = subset(1, 8)
    torch.testing.assert_close(
        dual.dual_error(keys + 7.0, values, kept).relative(),
        dual.dual_error(keys, values, kept).relative(),
        rtol=1e-4,
        atol=1e-6,
    )


def literal_output(
    queries: Tensor, keys: Tensor, values: Tensor, unit: int, head: int, row: int, log_w: Tensor
) -> Tensor:
    """Attention over a list of tokens, term by term, in float64."""
    logits = keys[unit, head // 2].double() @ queries[unit, head, row].double() / math.sqrt(8) + log_w.double()
    weight = (logits - logits.max()).exp()
    return (weight / weight.sum()) @ values[unit, head // 2].double()


@given(seed=st.integers(0, 10_000), weighted=st.booleans())
def test_the_output_error_is_what_softmax_on_the_subset_gives(seed: int, weighted: bool) -> None:
    queries, keys, values = tensors(seed)
    kept = subset(seed, 8)
    log_weights = torch.rand(2, 8, generator=torch.Generator().manual_seed(seed + 1)) if weighted else None
    found = dual.output_error(queries, keys, values, kept, log_weights=log_weights)
    for unit in range(2):
        chosen = kept[unit].nonzero().flatten()
        bias = torch.zeros(8) if log_weights is None else log_weights[unit]
        for head in range(4):
            error = size = 0.0
            for row in range(3):
                full = literal_output(queries, keys, values, unit, head, row, torch.zeros(8))
                part = literal_output(queries, keys[:, :, chosen], values[:, :, chosen], unit, head, row, bias[chosen])
                error += float((full - part).square().sum()) / 3
                size += float(full.square().sum()) / 3
            assert float(found.error[unit, head]) == pytest.approx(error, rel=1e-3, abs=1e-9)
            assert float(found.size[unit, head]) == pytest.approx(size, rel=1e-3)


@given(seed=st.integers(0, 10_000), weighted=st.booleans())
def test_both_output_errors_agree_when_part_of_the_context_is_text(seed: int, weighted: bool) -> None:
    queries, keys, values = tensors(seed, tokens=10)
    kept = subset(seed, 10)
    kept[:, 7:] = True  # the last three are text
    log_weights = torch.rand(2, 10, generator=torch.Generator().manual_seed(seed + 1)) if weighted else None
    if log_weights is not None:
        log_weights[:, 7:] = 0.0
    rows = torch.tensor([[True, True, False], [True, True, True]])
    whole = dual.output_error(queries, keys, values, kept, rows=rows, log_weights=log_weights)
    full_keys, full_values = dual.expand_groups(keys, 4), dual.expand_groups(values, 4)
    attention = torch.softmax(queries @ full_keys.transpose(-1, -2) / math.sqrt(8), dim=-1)
    visual = dual.subset_error(
        attention[..., :7],
        values[:, :, :7],
        attention @ full_values,
        kept[:, :7],
        rows=rows,
        log_weights=None if log_weights is None else log_weights[:, :7],
    )
    torch.testing.assert_close(whole.error, visual.error, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(whole.size, visual.size, rtol=1e-3, atol=1e-8)


def test_log_weights_make_copies_free() -> None:
    """Three copies of A and one B: one A of weight 3 and B give the same output; without the weight they do not."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 8, generator=generator), torch.randn(2, 8, generator=generator)
    order = torch.tensor([0, 0, 0, 1])
    keys, values = key[order].view(1, 1, 4, 8), value[order].view(1, 1, 4, 8)
    queries = torch.randn(1, 1, 5, 8, generator=generator)
    kept = torch.tensor([[True, False, False, True]])
    plain = dual.output_error(queries, keys, values, kept).relative()
    weights = torch.tensor([[math.log(3.0), 0.0, 0.0, 0.0]])
    corrected = dual.output_error(queries, keys, values, kept, log_weights=weights).relative()
    assert float(plain) > 1e-3
    assert float(corrected) < 1e-10


def test_masks_of_causality_and_rows_without_keys() -> None:
    queries, keys, values = tensors(3)
    kept = torch.zeros(2, 8, dtype=torch.bool)
    kept[:, 5:] = True
    allowed = torch.arange(8)[None, None, :] <= torch.tensor([0, 4, 7])[None, :, None]
    found = dual.output_error(queries, keys, values, kept, allowed=allowed.expand(2, -1, -1))
    assert torch.isfinite(found.error).all()
    first_row = dual.output_error(
        queries, keys, values, kept, allowed=allowed.expand(2, -1, -1), rows=torch.tensor([[True, False, False]] * 2)
    )
    torch.testing.assert_close(first_row.error, first_row.size)  # it sees no kept key: its output is lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_of_the_size_of_real_models(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 30, 128, generator=generator)
    keys = 274.0 * keys / keys.norm(dim=-1, keepdim=True)
    bias = torch.randn(1, 2, 1, 128, generator=generator)
    keys = keys + 605.0 * bias / bias.norm(dim=-1, keepdim=True)
    queries, values = (
        20.0 * torch.randn(1, 4, 5, 128, generator=generator),
        torch.randn(1, 2, 30, 128, generator=generator),
    )
    kept = torch.zeros(1, 30, dtype=torch.bool)
    kept[:, ::3] = True
    inputs = [x.to(dtype) for x in (queries, keys, values)]
    output = dual.output_error(*inputs, kept)
    weight = dual.dual_error(inputs[1], inputs[2], kept)
    for found in (output, weight):
        assert torch.isfinite(found.error).all()
        assert torch.isfinite(found.relative()).all()
        assert float(found.relative()) > 0.0
    if dtype == torch.float32:
        exact = torch.softmax(queries[:, :1].double() @ keys[:, :1].double().transpose(-1, -2) / math.sqrt(128), dim=-1)
        part = exact * kept[:, None, None, :]
        value = values[:, :1].double()
        expected = (exact @ value - part / part.sum(-1, keepdim=True) @ value).square().sum(-1).mean()
        assert float(output.error[0, 0]) == pytest.approx(float(expected), rel=1e-3)


def layer(seed: int, tokens: int, text: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Attention on visual tokens, their values, and the output over visual and text tokens."""
    queries, keys, values = tensors(seed, tokens=tokens + text)
    full_keys, full_values = dual.expand_groups(keys, 4), dual.expand_groups(values, 4)
    attention = torch.softmax(2.0 * queries @ full_keys.transpose(-1, -2) / math.sqrt(8), dim=-1)
    return attention[..., :tokens], values[:, :, :tokens], attention @ full_values


def error_of(case: tuple[Tensor, Tensor, Tensor], picks: Tensor) -> Tensor:
    attention, values, output = case
    kept = torch.zeros(2, attention.shape[-1], dtype=torch.bool).scatter(-1, picks, True)
    return dual.subset_error(attention, values, output, kept).error.sum(dim=-1)


@pytest.mark.parametrize("k", [1, 2, 4, 6, 7])
def test_the_oracle_against_all_subsets(k: int) -> None:
    for seed in range(4):
        case = layer(seed, tokens=7)
        errors = torch.stack([error_of(case, torch.tensor([s, s])) for s in combinations(range(7), k)])
        found = dual.search_subset(*case, k, sweeps=3)
        assert found.shape == (2, k)
        assert (error_of(case, found) <= errors.quantile(0.1, dim=0) + 1e-9).all()
        if k in (1, 6, 7):  # one move from the start: greedy is exact
            torch.testing.assert_close(error_of(case, found), errors.amin(dim=0), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("k", [5, 20])
def test_no_swap_can_improve_the_oracle(k: int) -> None:
    case = layer(1, tokens=24)
    found = dual.search_subset(*case, k, sweeps=6)
    reached = error_of(case, found)
    for unit in range(2):
        inside = found[unit].tolist()
        for out, new in [(a, b) for a in inside for b in range(24) if b not in inside]:
            swapped = found.clone()
            swapped[unit] = torch.tensor([new if index == out else index for index in inside])
            assert float(error_of(case, swapped)[unit]) >= float(reached[unit]) * (1 - 1e-3) - 1e-9


def test_more_sweeps_never_hurt_and_the_oracle_beats_magnitude() -> None:
    case = layer(5, tokens=30)
    greedy, swapped = (error_of(case, dual.search_subset(*case, 6, sweeps=sweeps)) for sweeps in (0, 3))
    assert (swapped <= greedy + 1e-9).all()
    magnitude = error_of(case, dual.top_k(dual.leave_one_out(*case), 6))
    assert (greedy <= magnitude + 1e-9).all()
    assert float(swapped.sum()) < 0.9 * float(magnitude.sum())


def test_the_oracle_does_not_depend_on_the_batch_or_on_padding_rows() -> None:
    attention, values, output = layer(6, tokens=12)
    rows = torch.tensor([[True, True, False], [True, True, True]])
    both = dual.search_subset(attention, values, output, 4, rows=rows)
    alone = dual.search_subset(attention[:1, :, :2], values[:1], output[:1, :, :2], 4)
    assert alone[0].tolist() == both[0].tolist()


def test_out_of_range_is_refused() -> None:
    case = layer(0, tokens=6)
    with pytest.raises(BudgetError, match="cannot select 7 of 6"):
        dual.search_subset(*case, 7)
