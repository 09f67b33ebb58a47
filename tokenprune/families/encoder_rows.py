"""Which rows of a vision encoder make each visual token, for encoders that merge, pool or pack their patches.

A *row* is one hidden state of an encoder layer. The rows of all runs of the encoder in one forward pass are numbered
through, run by run and image by image, CLS rows and padding counted. A token is made of one row, or of several whose
weighted mean stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRows:
    """The rows of one image's or video's visual tokens.

    Args:
        index: (N, m) rows of each token.
        weights: (N, m) their shares, which sum to one; `None` for equal shares.
    """

    index: Tensor
    weights: Tensor | None = None

    def pool(self, values: Tensor) -> Tensor:
        """Means (N, ...) of per-row values (rows, ...), float32."""
        found = values[self.index.to(values.device)].float()
        if self.weights is None:
            return found.mean(dim=1)
        shares = self.weights.to(values.device).float()
        return (found * shares.reshape(*shares.shape, *[1] * (found.ndim - 2))).sum(dim=1)

    def shifted(self, rows: int) -> TokenRows:
        """The same tokens, where other rows stand before theirs."""
        return TokenRows(self.index + rows, self.weights)


@dataclass(frozen=True)
class EncoderRows:
    """The rows of all images and videos of a batch, in prompt order.

    Args:
        tokens: By image or video.
        total: Rows of all runs of the encoder, also those that belong to no token.
    """

    tokens: tuple[TokenRows, ...]
    total: int


@dataclass(frozen=True)
class Tile:
    """The rows of a square image in the encoder.

    Args:
        side: Patches along a side.
        cls_row: Row of the CLS token, 0 or -1, or `None` where there is none.
    """

    side: int
    cls_row: int | None = None

    @property
    def rows(self) -> int:
        """Rows of one image."""
        return self.side * self.side + (self.cls_row is not None)

    @property
    def first(self) -> int:
        """Row of the first patch."""
        return int(self.cls_row == 0)


def cells(height: int, width: int, pool: int, rows: int, columns: int) -> TokenRows:
    """Tokens (rows x columns) that are each made of pool x pool patches of a grid (height x width).

    Patches beyond the last token make none; a token that reaches beyond the grid is made of the patches inside.
    """
    down = torch.arange(rows * pool).view(rows, 1, pool, 1)
    right = torch.arange(columns * pool).view(1, columns, 1, pool)
    inside = ((down < height) & (right < width)).reshape(rows * columns, pool * pool)
    index = (down.clamp(max=height - 1) * width + right.clamp(max=width - 1)).reshape(rows * columns, pool * pool)
    if inside.all():
        return TokenRows(index)
    return TokenRows(index, inside / inside.sum(dim=1, keepdim=True))


def equal_tiles(count: int, tile: Tile, pool: int, rows: int) -> EncoderRows:
    """Square tiles one after another, each pooled to rows x rows tokens."""
    tokens = cells(tile.side, tile.side, pool, rows, rows)
    starts = [number * tile.rows + tile.first for number in range(count)]
    return EncoderRows(tuple(tokens.shifted(start) for start in starts), count * tile.rows)


def film(tile: Tile, frames: int, tokens: TokenRows, start: int) -> TokenRows:
    """A video whose frames are tiles one after another, from a row on; `tokens` are those of one frame."""
    shift = start + tile.first + torch.arange(frames)[:, None, None] * tile.rows
    weights = None if tokens.weights is None else tokens.weights.repeat(frames, 1)
    return TokenRows((tokens.index + shift).flatten(0, 1), weights)


def resized(places: Tensor, rows: int, columns: int) -> TokenRows:
    """Tokens (rows x columns) that bilinear interpolation makes of patches; `places` (height, width) are their rows."""
    if (rows, columns) == tuple(places.shape):
        return TokenRows(places.reshape(-1, 1))
    down, high = _taps(places.shape[0], rows)
    right, wide = _taps(places.shape[1], columns)
    index = places[down[:, None, :, None], right[None, :, None, :]]
    weights = high[:, None, :, None] * wide[None, :, None, :]
    return TokenRows(index.reshape(rows * columns, 4), weights.reshape(rows * columns, 4))


def _taps(length: int, wanted: int) -> tuple[Tensor, Tensor]:
    """The two neighbours (wanted, 2) of every interpolated point on an axis, and their shares."""
    points = ((torch.arange(wanted) + 0.5) * (length / wanted) - 0.5).clamp(min=0)
    before = points.floor().long()
    share = points - before
    return torch.stack([before, (before + 1).clamp(max=length - 1)], 1), torch.stack([1 - share, share], 1)


def starts_of(counts: Sequence[int]) -> list[int]:
    """Where stretches of these lengths begin, and where the last one ends."""
    return [sum(counts[:number]) for number in range(len(counts) + 1)]
