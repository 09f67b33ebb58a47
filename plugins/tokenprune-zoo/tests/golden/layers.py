"""What several files need of a decoder layer that the published code ran: norm, heads, rotary embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of rows (S, D)."""
    return hidden / (hidden.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """(S, H d) -> (1, H, S, d)."""
    return rows.reshape(rows.shape[0], heads, -1).transpose(0, 1)[None]


def rotary_tables(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions (S,), (1, S, d) each, both halves equal."""
    frequency = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = (positions.double()[:, None] * frequency).repeat(1, 2)[None]
    return angle.cos().float(), angle.sin().float()
