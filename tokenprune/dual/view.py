"""Ready the raw tensors: RoPE on and off, key-value groups, centring, unit vectors.

Shape letters as in `tokenprune.pruner`: B units, G key-value heads, H query heads, N tokens, R rows, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.errors import ConfigError

#: Finite stand-in for log(0), below every logit that a model can make and still safe to average over heads.
LOG_ZERO = -1e30


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary position embedding in the half-split layout.

    Args:
        x: Queries or keys, (B, H, N, d).
        cos: Cosines, (B, N, d), both halves equal.
        sin: Sines, (B, N, d), both halves equal.

    Returns:
        (B, H, N, d) in float32.

    Source: Su et al., "RoFormer", eq. 34, with the pairs (j, j + d/2).
    """
    x, cos, sin = x.float(), cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def expand_groups(x: Tensor, heads: int) -> Tensor:
    """Repeat key-value heads for their query heads: (B, G, N, d) -> (B, H, N, d).

    Raises:
        ConfigError: `heads` is not a multiple of G.
    """
    _check_groups(heads, x.shape[1])
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def group_queries(queries: Tensor, mask: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """Put the queries of all heads that share one key-value head side by side.

    Args:
        queries: (B, H, R, d).
        mask: (B, R), True = real row, or `None` for all.
        groups: G.

    Returns:
        Queries (B, G, H/G * R, d) and mask (B, H/G * R).
    """
    units, heads, rows, width = queries.shape
    _check_groups(heads, groups)
    if mask is None:
        mask = torch.ones(units, rows, dtype=torch.bool, device=queries.device)
    return queries.reshape(units, groups, heads // groups * rows, width), mask.repeat(1, heads // groups)


def centre(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Subtract the mean over the tokens (dimension -2) in float32.

    Softmax attention does not change when all keys move together, but products of long keys lose their digits:
    the mean goes first, the Gram matrix comes after.

    Args:
        x: (..., N, d).
        mask: (..., N), True = counts towards the mean, or `None` for all.
    """
    x = x.float()
    if mask is None:
        return x - x.mean(dim=-2, keepdim=True)
    weight = mask.to(x.dtype).unsqueeze(-1)
    mean = (x * weight).sum(dim=-2, keepdim=True) / weight.sum(dim=-2, keepdim=True).clamp_min(1.0)
    return x - mean


def l2_normalize(x: Tensor) -> Tensor:
    """Vectors of length one in float32; a zero vector stays zero (it duplicates nothing), never NaN."""
    x = x.float()
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(length > 0, x / length.clamp_min(torch.finfo(x.dtype).tiny), torch.zeros_like(x))


def log_norm(x: Tensor) -> Tensor:
    """Log of the vector lengths along the last dimension in float32; `LOG_ZERO` for a zero vector."""
    length: Tensor = torch.linalg.vector_norm(x.float(), dim=-1)
    return torch.where(length > 0, length.log(), LOG_ZERO)


def masked_log_mean_exp(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """log(mean(exp(x))) over the rows where `mask` (broadcastable to `x`) is True."""
    if mask is None:
        return torch.logsumexp(x, dim=dim) - torch.tensor(x.shape[dim], dtype=x.dtype, device=x.device).log()
    mask = mask.expand_as(x)
    count = mask.sum(dim=dim).clamp_min(1).to(x.dtype)
    return torch.logsumexp(x.masked_fill(~mask, torch.finfo(x.dtype).min), dim=dim) - count.log()


def _check_groups(heads: int, groups: int) -> None:
    if groups < 1 or heads % groups:
        raise ConfigError(
            f"{heads} query heads cannot share {groups} key-value heads", hint="H must be a multiple of G"
        )
