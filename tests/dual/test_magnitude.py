"""Magnitudes against the formula said naively, with ragged queries and keys of real models' size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import dual
from tokenprune.errors import ConfigError


def tensors(seed: int, units: int = 2, tokens: int = 6, rows: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries (B, 4, R, 8), keys and values (B, 2, N, 8), mask (B, R) with at least one real row."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(units, 4, rows, 8, generator=generator)
    keys = torch.randn(units, 2, tokens, 8, generator=generator)
    values = torch.randn(units, 2, tokens, 8, generator=generator)
    mask = torch.arange(rows) < torch.randint(1, rows + 1, (units, 1), generator=generator)
    return queries, keys, values, mask


@pytest.mark.parametrize("rows", ["logmeanexp", "mean", "max"])
@pytest.mark.parametrize("heads", ["logmeanexp", "mean", "max"])
@pytest.mark.parametrize("normalise", [True, False])
def test_kernel_magnitude_against_the_formula(rows: str, heads: str, normalise: bool) -> None:
    queries, keys, values, mask = tensors(0)
    found = dual.kernel_magnitude(queries, keys, values, mask, rows=rows, heads=heads, normalise=normalise)  # type: ignore[arg-type]
    pools = {
        "mean": lambda xs: sum(xs) / len(xs),
        "max": max,
        "logmeanexp": lambda xs: math.log(sum(math.exp(x) for x in xs) / len(xs)),
    }
    for unit in range(2):
        for token in range(6):
            per_head = []
            for group in range(2):
                logs = []
                for head in (2 * group, 2 * group + 1):
                    for row in range(4):
                        if not mask[unit, row]:
                            continue
                        logits = (queries[unit, head, row].double() @ keys[unit, group].double().T) / math.sqrt(8)
                        shift = float(logits.exp().sum().log()) if normalise else 0.0
                        logs.append(float(logits[token]) - shift)
                per_head.append(pools[rows](logs) + math.log(float(values[unit, group, token].norm())))
            assert float(found[unit, token]) == pytest.approx(pools[heads](per_head), abs=1e-4)


@given(seed=st.integers(0, 10_000))
def test_padding_rows_do_not_matter(seed: int) -> None:
    queries, keys, values, mask = tensors(seed)
    junk = torch.where(mask[:, None, :, None], queries, torch.full_like(queries, 1e4))
    torch.testing.assert_close(
        dual.kernel_magnitude(junk, keys, values, mask), dual.kernel_magnitude(queries, keys, values, mask)
    )
    for unit in range(2):
        real = int(mask[unit].sum())
        alone = dual.kernel_magnitude(
            queries[unit : unit + 1, :, :real], keys[unit : unit + 1], values[unit : unit + 1]
        )
        torch.testing.assert_close(alone[0], dual.kernel_magnitude(queries, keys, values, mask)[unit])


def attention_of(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    full = dual.expand_groups(keys, queries.shape[1]).double()
    probability = torch.softmax(queries.double() @ full.transpose(-1, -2) / math.sqrt(keys.shape[-1]), dim=-1)
    return probability, probability @ dual.expand_groups(values, queries.shape[1]).double()


@given(seed=st.integers(0, 10_000))
def test_leave_one_out_is_what_happens_when_one_token_is_left_out(seed: int) -> None:
    queries, keys, values, mask = tensors(seed, tokens=5)
    attention, output = attention_of(queries, keys, values)
    found = dual.leave_one_out(attention[..., :3].float(), values[:, :, :3], output.float(), mask)  # 2 tokens are text
    for token in range(3):
        rest = [i for i in range(5) if i != token]
        _, without = attention_of(queries, keys[:, :, rest], values[:, :, rest])
        moved = (output - without).square().sum(-1)
        for unit in range(2):
            expected = math.sqrt(float(moved[unit][:, mask[unit]].mean()))
            assert float(found[unit, token]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_attention_magnitude_against_the_formula() -> None:
    queries, keys, values, mask = tensors(5)
    attention, _ = attention_of(queries, keys, values)
    found = dual.attention_magnitude(attention.float(), values, mask)
    for unit in range(2):
        expected = torch.zeros(6, dtype=torch.double)
        for head in range(4):
            expected += (
                attention[unit, head][mask[unit]].mean(dim=0) * values[unit, head // 2].double().norm(dim=-1) / 4
            )
        torch.testing.assert_close(found[unit].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_constant_added_to_all_keys_changes_nothing() -> None:
    queries, keys, values, mask = tensors(1)
    shift = torch.full_like(keys, 3.0)
    torch.testing.assert_close(
        dual.kernel_magnitude(queries, keys + shift, values, mask),
        dual.kernel_magnitude(queries, keys, values, mask),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_queries_of_the_size_of_real_models(dtype: torch.dtype) -> None:
    """Key norms of 274 with a bias of 605 overflow exp in every precision; nothing here may."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 20, 128, generator=generator)
    keys = 274.0 * keys / keys.norm(dim=-1, keepdim=True)
    bias = torch.randn(1, 2, 1, 128, generator=generator)
    keys = keys + 605.0 * bias / bias.norm(dim=-1, keepdim=True)
    queries = 100.0 * torch.randn(1, 4, 3, 128, generator=generator)
    values = torch.randn(1, 2, 20, 128, generator=generator)
    values[:, :, 4] = 0.0
    for found in (
        dual.kernel_magnitude(queries.to(dtype), keys.to(dtype), values.to(dtype)),
        dual.kernel_magnitude(queries.to(dtype), keys.to(dtype), values.to(dtype), normalise=False),
    ):
        assert torch.isfinite(found).all()
        assert found.dtype == torch.float32
        assert int(found.argmin()) == 4  # a value of zero adds nothing, whatever its key


def test_scales() -> None:
    magnitude = torch.tensor([[3.0, -1.0, 10.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    assert dual.scaled(magnitude, "rank").tolist() == [[0.5, 0.0, 1.0, 0.5], [1.0] * 4]
    torch.testing.assert_close(dual.scaled(magnitude, "minmax"), torch.tensor([[4 / 11, 0.0, 1.0, 4 / 11], [1.0] * 4]))
    assert dual.scaled(magnitude, "none") is magnitude
    nothing = torch.tensor([[dual.log_norm(torch.zeros(3)).item(), 1.0, 2.0, 3.0]])
    assert dual.scaled(nothing, "minmax").tolist() == [[0.0, 0.0, 0.5, 1.0]]
    assert dual.scaled(torch.tensor([[2.0]]), "rank").tolist() == [[1.0]]
    with pytest.raises(ConfigError, match="unknown magnitude scale"):
        dual.scaled(magnitude, "log")  # type: ignore[arg-type]


@given(seed=st.integers(0, 10_000))
def test_ranks_keep_the_order(seed: int) -> None:
    magnitude = torch.randn(3, 11, generator=torch.Generator().manual_seed(seed))
    for scale in ("rank", "minmax"):
        found = dual.scaled(magnitude, scale)  # type: ignore[arg-type]
        assert torch.equal(found.argsort(dim=-1), magnitude.argsort(dim=-1))
        assert float(found.min()) == 0.0
        assert float(found.max()) == 1.0


def test_unknown_pooling_is_refused() -> None:
    queries, keys, values, mask = tensors(0)
    with pytest.raises(ConfigError, match="pooling of rows"):
        dual.kernel_magnitude(queries, keys, values, mask, rows="sum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pooling of heads"):
        dual.kernel_magnitude(queries, keys, values, mask, heads="sum")  # type: ignore[arg-type]
