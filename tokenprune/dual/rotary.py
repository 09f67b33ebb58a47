"""What a rotary position embedding alone contributes to attention, read off the projections themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation(rotated: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair's rotation angle, from vectors with and without the embedding, (B, N, d / 2) each.

    The angle is the same in every head, so the heads are added up: a pair that is small in one of them costs nothing.

    Args:
        rotated: (B, H, N, d), half-split layout.
        plain: The same vectors before the rotation, (B, H, N, d).
    """
    a, b = rotated.float().chunk(2, dim=-1)
    c, d = plain.float().chunk(2, dim=-1)
    cosine, sine = (a * c + b * d).sum(dim=1), (b * c - a * d).sum(dim=1)
    length = torch.hypot(cosine, sine)
    known = length > 0
    length = length.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(known, cosine / length, 1.0), torch.where(known, sine / length, 0.0)


def rotary_response(queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> Tensor:
    """Attention logit of an all-ones query and an all-ones key at their positions, (B, R, N).

    2 / sqrt(d) sum_j cos(angle_q,j - angle_k,j): what distance alone does to a logit.

    Args:
        queries: With and without the embedding, (B, H, R, d) each.
        keys: With and without the embedding, (B, G, N, d) each.
    """
    width = keys[0].shape[-1]
    (row_cosine, row_sine), (cosine, sine) = rotation(*queries), rotation(*keys)
    response = row_cosine @ cosine.transpose(-1, -2) + row_sine @ sine.transpose(-1, -2)
    return 2.0 / math.sqrt(width) * response
