"""Map visual tokens to the encoder rows that make them, for encoders that merge, pool or pack their patches.

A *row* is one hidden state of an encoder layer. Rows are numbered consecutively over all runs of the encoder in one
forward pass, image by image, including CLS rows and padding. A token is one row, or the weighted mean of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRows:
    """The encoder rows of the visual tokens of one image or video.

    Args:
        index: (N, m) rows of each token.
        weights: (N, m) weights of the rows, which sum to one; `None` for equal weights.
    """

    index: Tensor
    weights: Tensor | None = None

    def pool(self, values: Tensor) -> Tensor:
        """Weighted mean of values (rows, ...) over each token's rows, (N, ...), float32."""
        found = values[self.index.to(values.device)].float()
        if self.weights is None:
            return found.mean(dim=1)
        shares = self.weights.to(values.device).float()
        return (found * shares.reshape(*shares.shape, *[1] * (found.ndim - 2))).sum(dim=1)

    def shifted(self, rows: int) -> TokenRows:
        """The same tokens after `rows` other rows."""
        return TokenRows(self.index + rows, self.weights)


@dataclass(frozen=True)
class EncoderRows:
    """The encoder rows of all images and videos of a batch, in prompt order.

    Args:
        tokens: By image or video, the rows of its tokens.
        total: Number of rows of all runs of the encoder, including rows that belong to no token.
    """

    tokens: tuple[TokenRows, ...]
    total: int


@dataclass(frozen=True)
class Tile:
    """The encoder rows of one square image.

    Args:
        side: Patches along a side.
        cls_row: Row of the CLS token, 0 or -1, or `None`.
    """

    side: int
    cls_row: int | None = None

    @property
    def rows(self) -> int:
        """Number of rows of the image."""
        return self.side * self.side + (self.cls_row is not None)

    @property
    def first(self) -> int:
        """Index of the first patch's row."""
        return int(self.cls_row == 0)


def cells(height: int, width: int, pool: int, rows: int, columns: int) -> TokenRows:
    """Tokens (rows x columns) that each pool a square of pool x pool patches in a grid (height x width).

    Patches behind the last token belong to no token. A square that crosses the grid's edge has only the patches inside.
    """
    down = torch.arange(rows * pool).view(rows, 1, pool, 1)
    right = torch.arange(columns * pool).view(1, columns, 1, pool)
    inside = ((down < height) & (right < width)).reshape(rows * columns, pool * pool)
    index = (down.clamp(max=height - 1) * width + right.clamp(max=width - 1)).reshape(rows * columns, pool * pool)
    if inside.all():
        return TokenRows(index)
    return TokenRows(index, inside / inside.sum(dim=1, keepdim=True))


def equal_tiles(count: int, tile: Tile, pool: int, rows: int) -> EncoderRows:
    """Consecutive square tiles, each pooled to rows x rows tokens."""
    tokens = cells(tile.side, tile.side, pool, rows, rows)
    starts = [number * tile.rows + tile.first for number in range(count)]
    return EncoderRows(tuple(tokens.shifted(start) for start in starts), count * tile.rows)


def film(tile: Tile, frames: int, tokens: TokenRows, start: int) -> TokenRows:
    """A video whose frames are consecutive tiles from row `start`; `tokens` are those of one frame."""
    shift = start + tile.first + torch.arange(frames)[:, None, None] * tile.rows
    weights = None if tokens.weights is None else tokens.weights.repeat(frames, 1)
    return TokenRows((tokens.index + shift).flatten(0, 1), weights)


def resized(patch_rows: Tensor, rows: int, columns: int) -> TokenRows:
    """Tokens (rows x columns) that bilinear interpolation makes from patches with row indices (height, width)."""
    if (rows, columns) == tuple(patch_rows.shape):
        return TokenRows(patch_rows.reshape(-1, 1))
    down, high = _taps(patch_rows.shape[0], rows)
    right, wide = _taps(patch_rows.shape[1], columns)
    index = patch_rows[down[:, None, :, None], right[None, :, None, :]]
    weights = high[:, None, :, None] * wide[None, :, None, :]
    return TokenRows(index.reshape(rows * columns, 4), weights.reshape(rows * columns, 4))


def _taps(length: int, wanted: int) -> tuple[Tensor, Tensor]:
    """The two neighbours (wanted, 2) of every interpolated point on an axis, and their weights."""
    points = ((torch.arange(wanted) + 0.5) * (length / wanted) - 0.5).clamp(min=0)
    before = points.floor().long()
    share = points - before
    return torch.stack([before, (before + 1).clamp(max=length - 1)], 1), torch.stack([1 - share, share], 1)


def starts_of(counts: Sequence[int]) -> list[int]:
    """The start of each segment of the given lengths, and the end of the last one."""
    return [sum(counts[:number]) for number in range(len(counts) + 1)]
