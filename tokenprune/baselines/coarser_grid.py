"""Coarser grids over a picture, and tokens evenly spaced on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def coarser_grid(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """The grid (rows, columns) with the most cells, at most `keep`, whose aspect is close to that of `grid`."""
    candidates = ((rows, min(grid[1], keep // rows)) for rows in range(1, min(grid[0], keep) + 1) if keep // rows >= 1)
    aspect = grid[0] / grid[1]

    def keeps_shape(cells: tuple[int, int]) -> bool:
        stretch = abs(math.log(cells[0] / cells[1] / aspect))
        return stretch < math.log(1.4) or abs(cells[0] - cells[1] * aspect) <= 1

    squarish = [cells for cells in candidates if keeps_shape(cells)]
    return max(squarish or [(1, 1)], key=lambda cells: (cells[0] * cells[1], -abs(cells[0] - cells[1]), cells[0]))


def stride(count: int, keep: int) -> Tensor:
    """`keep` of `count` indices, evenly spaced."""
    import torch

    return ((torch.arange(keep, dtype=torch.float64) + 0.5) * count / max(1, keep)).long()


def spread(grid: tuple[int, int], keep: int) -> Tensor:
    """`keep` tokens of one image: the cell centres of a coarser grid, then evenly spaced others."""
    import torch

    score = torch.zeros(grid[0] * grid[1], dtype=torch.float64)
    score[stride(len(score), keep)] = 1.0
    score[centres(grid, coarser_grid(grid, keep))] = 2.0
    return score.sort(descending=True, stable=True).indices[:keep]


def centres(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Index of the token nearest to the centre of each cell, in raster order."""
    import torch

    lines = [
        (((torch.arange(count, dtype=torch.float64) + 0.5) * size / count).floor().long()).clamp(max=size - 1)
        for size, count in zip(grid, cells, strict=True)
    ]
    return (lines[0][:, None] * grid[1] + lines[1][None, :]).reshape(-1)
