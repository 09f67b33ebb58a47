"""Map the rows of a shortened sequence to the slots of the original prompt, and back.

A *slot* is a position in the padded prompt as the model received it (0..S-1). A *row* is a position in the sequence
that a decoder layer really runs with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows with which consecutive decoder layers run.

    Args:
        slots: (B, S') slot of each row, -1 for padding.
        inverse: (B, S) row of each slot, -1 if the slot was removed.
    """

    slots: Tensor
    inverse: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, S') True if the row is a token, False for padding."""
        return self.slots >= 0

    @classmethod
    def identity(cls, valid: Tensor) -> Rows:
        """Rows of an unpruned prompt with validity (B, S)."""
        slots = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        slots = slots.masked_fill(~valid, -1)
        return cls(slots, slots)

    def select(self, remaining: Tensor, *, pad_left: bool) -> tuple[Tensor, Rows]:
        """Keep the slots that are True in `remaining` (B, S), and pad every sample to the longest.

        Returns:
            Row indices (B, S'') into the present rows (0 for padding), and the new rows.
        """
        counts = remaining.sum(dim=1)
        width = int(counts.max())
        order = (~remaining).to(torch.int8).argsort(dim=1, stable=True)
        offset = torch.arange(width, device=remaining.device)[None, :]
        offset = offset - (width - counts)[:, None] if pad_left else offset.expand(remaining.shape[0], -1)
        real = (offset >= 0) & (offset < counts[:, None])
        slots = order.gather(1, offset.clamp(min=0)).masked_fill(~real, -1)
        gather = self.inverse.gather(1, slots.clamp(min=0)).masked_fill(~real, 0)
        inverse = torch.full_like(self.inverse, -1)
        batch, row = real.nonzero(as_tuple=True)
        inverse[batch, slots[batch, row]] = row
        return gather, Rows(slots, inverse)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, K) of `values` (B, S, D) or (1, S, D)."""
    if values.shape[0] != index.shape[0]:
        values = values.expand(index.shape[0], *values.shape[1:])
    return values.gather(1, index.to(values.device)[..., None].expand(-1, -1, values.shape[-1]))


def gather_embeddings(given: Any, index: Tensor) -> Any:
    """Rows `index` (B, K) of position embeddings: a tensor (B or 1, S, ...) or a tuple of such."""
    if isinstance(given, tuple):
        return tuple(gather_embeddings(part, index) for part in given)
    wide = given.expand(index.shape[0], *given.shape[1:])
    index = index.to(given.device)
    expanded = index.reshape(*index.shape, *(1 for _ in given.shape[2:])).expand(-1, -1, *given.shape[2:])
    return wide.gather(1, expanded)


def spread_rows(values: Tensor, rows: Rows) -> Tensor:
    """Put rows (B, S', D) back into their slots (B, S, D); removed slots are zero."""
    full = gather_rows(values, rows.inverse.clamp(min=0))
    return full.masked_fill((rows.inverse < 0).to(full.device)[..., None], 0.0)


def pack_slots(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Slots that are True in `mask` (U, S), in order, padded at the end.

    Returns:
        Slots (U, R), and which of them are real (U, R); R is at least 1.
    """
    counts = mask.sum(dim=1)
    width = max(1, int(counts.max()))
    slots = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    return slots, torch.arange(width, device=mask.device)[None, :] < counts[:, None]
