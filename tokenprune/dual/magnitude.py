"""Magnitude: how big is the rank-1 update that a token adds to the implicit weight.

Every function gives (B, N) float32, higher = larger. The attention kernel kappa(q, k) = exp(q.k / sqrt(d)) is never
formed outside a logarithm: key norms of real models reach the hundreds, and exp(norm^2 / sqrt(d)) overflows float64.
Heads are taken one by one, so that nothing of size heads x rows x N outlives its head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tokenprune.dual.tiling import tiles
from tokenprune.dual.view import LOG_ZERO, group_queries, log_norm, masked_log_mean_exp
from tokenprune.errors import ConfigError

RowPooling = Literal["logmeanexp", "mean", "max"]
HeadPooling = Literal["mean", "max", "logmeanexp"]
Scale = Literal["rank", "minmax", "none"]


def kernel_magnitude(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    normalise: bool = True,
    rows: RowPooling = "logmeanexp",
    heads: HeadPooling = "mean",
) -> Tensor:
    """log(kappa(q, k_i) ||v_i||), pooled over query rows and heads, (B, N).

    Args:
        queries: (B, H, R, d).
        keys: (B, G, N, d).
        values: (B, G, N, d).
        mask: (B, R), True = real row, or `None` for all.
        normalise: Divide each row by its sum over the N tokens, so that rows and heads are comparable; a single row
            is ranked the same either way.
        rows: Pooling over the rows: log of the mean of exp, mean of logs, or largest log.
        heads: Pooling over the key-value heads (each with all query heads that share it).

    Source: Lee et al., "IWP", arXiv 2604.00757, eq. 9-10.
    """
    groups, width = keys.shape[1], keys.shape[-1]
    queries, mask = group_queries(queries.float(), mask, groups)
    pooled = []
    for group in range(groups):
        parts = []
        for part in tiles(queries.shape[2], keys.shape[2]):
            logits = queries[:, group, part] @ keys[:, group].float().transpose(-1, -2) / math.sqrt(width)
            if normalise:
                logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
            parts.append(_pool_rows(logits, mask[:, part, None], rows))
        pooled.append(_join_rows(parts, mask, rows) + log_norm(values[:, group]))
    return _pool_heads(torch.stack(pooled, dim=1), heads)


def attention_magnitude(attention: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over rows and heads of a_i ||v_i||, (B, N).

    Args:
        attention: Probabilities (B, H, R, N).
        values: (B, G, N, d).
        mask: (B, R), True = real row, or `None` for all.
    """
    length: Tensor = torch.linalg.vector_norm(values.float(), dim=-1)
    length = length.repeat_interleave(attention.shape[1] // length.shape[1], dim=1)
    return (mean_rows(attention, mask) * length).mean(dim=1)


def leave_one_out(attention: Tensor, values: Tensor, output: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far the attention output moves when one token alone is dropped and the rest is renormalised, (B, N).

    rho_i = sqrt(E[(a_i / (1 - a_i))^2 ||v_i - o||^2]), the mean taken over rows and heads. Exact, because
    o - o_{-i} = a_i / (1 - a_i) (v_i - o).

    Args:
        attention: Probabilities over the *whole* context, its columns of the N tokens, (B, H, R, N).
        values: (B, G, N, d).
        output: Attention output o over the whole context, (B, H, R, d).
        mask: (B, R), True = real row, or `None` for all.

    Source: derived from softmax attention; the one-token form is also CAOTE's (arXiv 2504.14051) score.
    """
    heads, per_group = attention.shape[1], attention.shape[1] // values.shape[1]
    weight = _row_weights(attention, mask)
    total = torch.zeros(attention.shape[0], attention.shape[-1], device=attention.device)
    for head in range(heads):
        probability = attention[:, head].float()
        squared = squared_distance(output[:, head], values[:, head // per_group])
        odds = probability / (1.0 - probability).clamp_min(torch.finfo(torch.float32).eps)
        total += (odds.square() * squared * weight.unsqueeze(-1)).sum(dim=1) / heads
    return total.sqrt()


def squared_distance(rows: Tensor, columns: Tensor) -> Tensor:
    """||r - c||^2 of every row (..., R, d) and column (..., N, d), at least 0, (..., R, N)."""
    rows, columns = rows.float(), columns.float()
    shift = columns.mean(dim=-2, keepdim=True)  # a common part would cost digits in the products below
    rows, columns = rows - shift, columns - shift
    squares = rows.square().sum(-1, keepdim=True) + columns.square().sum(-1).unsqueeze(-2)
    return (squares - 2.0 * rows @ columns.transpose(-1, -2)).clamp_min(0.0)


def mean_rows(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the real rows: (B, H, R, N) -> (B, H, N)."""
    weight = _row_weights(attention, mask)
    return (attention.float() * weight[:, None, :, None]).sum(dim=2)


def scaled(magnitude: Tensor, scale: Scale) -> Tensor:
    """Bring magnitudes to [0, 1] so that they can be traded against duplications, (..., N).

    Args:
        magnitude: (..., N), of any range.
        scale: `rank` spreads the ranks evenly (equal values share their mean rank), `minmax` is linear, `none` leaves
            them as they are. Where all values are equal the result is all ones.

    Raises:
        ConfigError: Unknown scale.
    """
    magnitude = magnitude.float()
    if scale == "none":
        return magnitude
    if scale == "minmax":  # tokens of size zero share the lowest place instead of stretching the scale
        present = torch.where(magnitude > LOG_ZERO / 1e6, magnitude, magnitude.amax(dim=-1, keepdim=True))
        magnitude = torch.maximum(magnitude, present.amin(dim=-1, keepdim=True))
    low, high = magnitude.amin(dim=-1, keepdim=True), magnitude.amax(dim=-1, keepdim=True)
    if scale == "minmax":
        spread = high - low
        return torch.where(spread > 0, (magnitude - low) / spread.clamp_min(1e-30), torch.ones_like(magnitude))
    if scale == "rank":
        ordered = magnitude.sort(dim=-1).values.contiguous()
        below = torch.searchsorted(ordered, magnitude.contiguous(), right=False)
        up_to = torch.searchsorted(ordered, magnitude.contiguous(), right=True)
        ranks = (below + up_to - 1).float() / 2.0
        if magnitude.shape[-1] == 1:
            return torch.ones_like(magnitude)
        return torch.where(high > low, ranks / (magnitude.shape[-1] - 1), torch.ones_like(magnitude))
    raise ConfigError(f"unknown magnitude scale `{scale}`", hint="use `rank`, `minmax` or `none`")


def _row_weights(attention: Tensor, mask: Tensor | None) -> Tensor:
    """Equal weights of the real rows that sum to one, (B, R)."""
    if mask is None:
        units, _, rows, _ = attention.shape
        return torch.full((units, rows), 1.0 / rows, device=attention.device)
    real = mask.to(device=attention.device, dtype=torch.float32)
    return real / real.sum(dim=-1, keepdim=True).clamp_min(1.0)


def _pool_rows(logs: Tensor, mask: Tensor, how: RowPooling) -> Tensor:
    """Pool some rows (B, r, N) with mask (B, r, 1), before the division by the number of all rows: (B, N)."""
    if how == "logmeanexp":
        return torch.logsumexp(logs.masked_fill(~mask, torch.finfo(logs.dtype).min), dim=1)
    if how == "mean":
        return logs.masked_fill(~mask, 0.0).sum(dim=1)
    if how == "max":
        return logs.masked_fill(~mask, torch.finfo(logs.dtype).min).amax(dim=1)
    raise ConfigError(f"unknown pooling of rows `{how}`", hint="use `logmeanexp`, `mean` or `max`")


def _join_rows(parts: Sequence[Tensor], mask: Tensor, how: RowPooling) -> Tensor:
    """Join what `_pool_rows` made of parts of the rows, with the mask (B, R) of all rows: (B, N)."""
    together, count = torch.stack(list(parts)), mask.sum(dim=1, keepdim=True).clamp_min(1)
    if how == "logmeanexp":
        return torch.logsumexp(together, dim=0) - count.to(together.dtype).log()
    return together.amax(dim=0) if how == "max" else together.sum(dim=0) / count


def _pool_heads(logs: Tensor, how: HeadPooling) -> Tensor:
    """(B, G, N) -> (B, N)."""
    if how == "mean":
        return logs.mean(dim=1)
    if how == "max":
        return logs.amax(dim=1)
    if how == "logmeanexp":
        return masked_log_mean_exp(logs, None, dim=1)
    raise ConfigError(f"unknown pooling of heads `{how}`", hint="use `mean`, `max` or `logmeanexp`")
