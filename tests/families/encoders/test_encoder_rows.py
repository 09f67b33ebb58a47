"""The maps from patches to tokens, against the operations of torch that they stand for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokenprune.families.encoder_rows import Tile, cells, equal_tiles, film, resized, starts_of

sizes = st.integers(1, 9)


def values(count: int, width: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


@given(sizes, sizes, st.integers(1, 4), st.booleans())
def test_cells_are_what_average_pooling_reads(height: int, width: int, pool: int, padded: bool) -> None:
    rows, columns = (-(-height // pool), -(-width // pool)) if padded else (height // pool, width // pool)
    patches = values(height * width)
    spread = (
        nn.functional.avg_pool2d(patches.T.reshape(1, 3, height, width), pool, ceil_mode=padded)
        if rows * columns
        else torch.empty(1, 3, 0, 0)
    )
    found = cells(height, width, pool, rows, columns).pool(patches)
    torch.testing.assert_close(found, spread.flatten(2)[0].T.contiguous(), atol=1e-5, rtol=1e-5)


@given(sizes, sizes, sizes, sizes)
def test_resized_is_bilinear_interpolation(height: int, width: int, rows: int, columns: int) -> None:
    patches = values(height * width)
    expected = nn.functional.interpolate(patches.T.reshape(1, 3, height, width), (rows, columns), mode="bilinear")
    found = resized(torch.arange(height * width).view(height, width), rows, columns)
    torch.testing.assert_close(found.pool(patches), expected.flatten(2)[0].T.contiguous(), atol=1e-5, rtol=1e-5)
    if found.weights is not None:
        torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(rows * columns))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 0, -1]))
def test_tiles_and_frames_name_every_patch_once(count: int, edge: int, pool: int, cls_row: int | None) -> None:
    tile = Tile(edge * pool, cls_row)
    found = equal_tiles(count, tile, pool, edge)
    every = torch.cat([tokens.index.flatten() for tokens in found.tokens])
    numbers = torch.arange(found.total).view(count, tile.rows)
    patches = numbers if cls_row is None else numbers[:, 1:] if cls_row == 0 else numbers[:, :-1]
    assert sorted(every.tolist()) == patches.flatten().tolist()
    video = film(tile, count, cells(tile.side, tile.side, pool, edge, edge), 5)
    assert torch.equal(video.index, torch.cat([tokens.index for tokens in found.tokens]) + 5)


def test_starts_end_with_the_sum() -> None:
    assert starts_of([2, 0, 3]) == [0, 2, 2, 5]
    assert starts_of([]) == [0]
