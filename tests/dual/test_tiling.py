"""What is worked out tile by tile is what the whole matrix gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import dual
from tokenprune.dual import tiling, transport
from tokenprune.dual.selection import cover, greedy, peaks

UNITS, TOKENS = 2, 37


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = normal(UNITS, TOKENS, 5)
WEIGHT = normal(UNITS, TOKENS, seed=1).abs()
KEYS, VALUES = normal(UNITS, 2, TOKENS, 4, seed=2), normal(UNITS, 2, TOKENS, 4, seed=3)
QUERIES = normal(UNITS, 4, TOKENS, 4, seed=4)
MASK = torch.arange(TOKENS).expand(UNITS, -1) < torch.tensor([[TOKENS], [TOKENS - 9]])
COSINE = dual.cosine_duplication(FEATURES, signed=True)
KEPT = torch.tensor([[1, 5, 30], [0, 2, 36]])

#: Functions that work in tiles, on random tokens.
RESULTS: dict[str, Callable[[], Any]] = {
    "assign": lambda: dual.assign(COSINE, KEPT),
    "best_match": lambda: dual.best_match(COSINE, KEPT, torch.arange(TOKENS).expand(UNITS, -1)),
    "chunked_mmr": lambda: dual.chunked_mmr(WEIGHT, COSINE, 20, growth=1.0),
    "mean_overlap": lambda: dual.chunked_mmr(WEIGHT, COSINE, 20, growth=1.0, overlap="mean"),
    "coverage": lambda: dual.coverage(WEIGHT, COSINE, 9),
    "density_peaks": lambda: dual.density_peaks(FEATURES, 6, neighbours=4),
    "dual_error": lambda: dual.dual_error(KEYS, VALUES, dual.member_mask(KEPT, TOKENS)).per_head(),
    "max_min": lambda: dual.max_min(COSINE, 9),
    "nearest_neighbour_bandwidth": lambda: dual.nearest_neighbour_bandwidth(KEYS),
    "propagated": lambda: dual.propagated(WEIGHT, COSINE, threshold=0.3, temperature=0.05, steps=3),
    "transported_mass": lambda: dual.transported_mass(
        WEIGHT, WEIGHT.flip(1), dual.squared_distance(FEATURES, FEATURES), epsilon=0.5, iterations=3
    ),
    "cost_by_rows": lambda: dual.transported_mass(
        WEIGHT,
        WEIGHT.flip(1),
        lambda part: dual.squared_distance(FEATURES[:, part], FEATURES),
        epsilon=0.5,
        iterations=3,
    ),
    "weighted_gain": lambda: dual.weighted_gain(WEIGHT, COSINE, 9),
    **{
        f"kernel_magnitude-{rows}": lambda rows=rows: dual.kernel_magnitude(QUERIES, KEYS, VALUES, MASK, rows=rows)
        for rows in ("logmeanexp", "mean", "max")
    },
}


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("entries", [1, 3 * TOKENS + 1, 20 * TOKENS])
@pytest.mark.parametrize("hold", [0, 1 << 28])
@pytest.mark.parametrize("name", RESULTS)
def test_tiles_change_nothing(name: str, hold: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RESULTS[name]()
    monkeypatch.setattr(tiling, "TILE", entries)
    for module, limit in ((cover, "HELD"), (cover, "KEPT"), (greedy, "HELD"), (peaks, "KEPT"), (transport, "KEPT")):
        monkeypatch.setattr(module, limit, hold)
    assert_same(RESULTS[name](), whole)


@given(rows=st.integers(0, 50), entries=st.integers(0, 3 * tiling.TILE))
@settings(deadline=None)
def test_tiles_cover_all_rows_once_and_are_small(rows: int, entries: int) -> None:
    parts = list(dual.tiles(rows, entries))
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert all(part.stop - part.start == 1 or (part.stop - part.start) * entries <= tiling.TILE for part in parts)


def test_a_matrix_that_is_too_large_is_made_at_every_reading() -> None:
    made: list[slice] = []

    def make(part: slice) -> Tensor:
        made.append(part)
        return FEATURES[:, part]

    kept = dual.TiledMatrix(make, (UNITS, TOKENS, 5), hold=UNITS * TOKENS * 5)
    torch.testing.assert_close(kept.over_rows(lambda _, tile: tile.sum(dim=-1)), FEATURES.sum(dim=-1))
    found = kept.column(torch.tensor([0, 3]))
    assert found is not None
    torch.testing.assert_close(found, torch.stack((FEATURES[0, :, 0], FEATURES[1, :, 3])))
    assert len(made) == 1
    large = dual.TiledMatrix(make, (UNITS, TOKENS, 5), hold=UNITS * TOKENS * 5 - 1)
    assert len(made) == 1
    assert large.column(torch.tensor([0, 3])) is None
    for _ in range(2):
        torch.testing.assert_close(large.over_rows(lambda _, tile: tile.sum(dim=-1)), FEATURES.sum(dim=-1))
    assert len(made) == 3
