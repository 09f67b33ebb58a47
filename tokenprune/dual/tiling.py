"""A few rows at a time: a matrix over all pairs of tokens is never whole in memory where nothing needs it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: Entries of one tile of one unit: 4 MiB of float32.
TILE = 1 << 20
#: Entries of a matrix that is read a few times and may stay: 32 MiB of float32.
KEPT = 1 << 23
#: Entries of a matrix that is read again and again and may stay: 1 GiB of float32, one unit of 16,384 tokens.
HELD = 1 << 28


def tiles(rows: int, entries: int) -> Iterator[slice]:
    """Slices that cover `rows` rows in order, of about `TILE` entries each where a row of one unit has `entries`.

    Other units of a batch do not count: a product of other shapes may differ in its last bits, and what is chosen must
    not depend on the batch.
    """
    step = max(1, TILE // max(1, entries))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class TiledMatrix:
    """A matrix (B, N, M) that is read several times: made once and kept where it is small, else made at each reading.

    Args:
        make: Rows of the matrix, (B, n, M), for a slice of the N rows.
        shape: B, N, M.
        hold: The most entries that are kept.
    """

    def __init__(self, make: Callable[[slice], Tensor], shape: tuple[int, int, int], *, hold: int) -> None:
        units, self._rows, self._entries = shape
        self._make = make
        self._kept: list[tuple[slice, Tensor]] | None = None
        if units * self._rows * self._entries <= hold:
            self._kept = [(part, make(part)) for part in tiles(self._rows, self._entries)]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows in order, tile by tile."""
        if self._kept is not None:
            yield from self._kept
        else:
            for part in tiles(self._rows, self._entries):
                yield part, self._make(part)

    def over_rows(self, reduce: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Results (B, n) of all tiles side by side, (B, N)."""
        return torch.cat([reduce(part, tile) for part, tile in self], dim=1)

    def column(self, index: Tensor) -> Tensor | None:
        """Column `index` (B,) of a matrix that is kept, (B, N); `None` of one that is not."""
        if self._kept is None:
            return None
        at = index[:, None, None]
        return torch.cat([tile.gather(2, at.expand(-1, tile.shape[1], 1)) for _, tile in self._kept], dim=1).squeeze(2)
