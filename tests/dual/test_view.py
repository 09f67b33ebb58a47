"""RoPE off and on again, groups, centring."""

from __future__ import annotations

import pytest
import torch

from tokenprune import dual
from tokenprune.errors import ConfigError


def tables(tokens: int, width: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(tokens)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)[None]
    return scale * angle.cos(), scale * angle.sin()


def test_rotation_against_complex_numbers() -> None:
    x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = tables(5, 8)
    rotated = dual.rotate(x, cos, sin)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos[:, None, :, :4], sin[:, None, :, :4])
    torch.testing.assert_close(rotated, torch.cat((turned.real, turned.imag), dim=-1))


def test_groups() -> None:
    keys = torch.arange(4.0).view(1, 2, 2, 1)
    assert dual.expand_groups(keys, 4).flatten().tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    queries = torch.randn(1, 4, 3, 2)
    mask = torch.tensor([[True, True, False]])
    grouped, rows = dual.group_queries(queries, mask, 2)
    assert grouped.shape == (1, 2, 6, 2)
    assert rows.tolist() == [[True, True, False, True, True, False]]
    torch.testing.assert_close(grouped[0, 1, 3:], queries[0, 3])
    with pytest.raises(ConfigError, match="3 query heads"):
        dual.expand_groups(keys, 3)


def test_centring_ignores_masked_rows() -> None:
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert dual.centre(x, mask).flatten().tolist() == [-1.0, 1.0, 98.0]
    assert dual.centre(x[:, :2]).flatten().tolist() == [-1.0, 1.0]


def test_unit_of_zero_and_of_the_smallest_vector() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-15, 0.0]])
    assert dual.l2_normalize(x).tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)], [1.0, 0.0]]
    assert torch.isfinite(dual.log_norm(x)).all()


def test_the_package_lists_what_it_gives() -> None:
    for name in dir(dual):
        assert getattr(dual, name) is not None
    with pytest.raises(AttributeError, match="attribute top_kk"):
        _ = dual.top_kk  # type: ignore[attr-defined]
