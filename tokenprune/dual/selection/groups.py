"""Quotas: a budget that is shared out among groups of tokens (chunks, windows), and selection inside them.

Batched and without reading a value back to the host; ties go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.dual.selection.select import top_k
from tokenprune.errors import BudgetError


def rank_in_group(scores: Tensor, groups: Tensor) -> Tensor:
    """Place of each token among its group by descending score, 0 the best, (B, N) int64.

    Args:
        scores: (B, N).
        groups: Group number of each token, (N,), 0..P-1.
    """
    by_score = scores.float().sort(dim=-1, descending=True, stable=True).indices
    by_group = groups[by_score].sort(dim=-1, stable=True).indices
    order = by_score.gather(-1, by_group)  # group by group, best first
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(scores.shape[-1], device=scores.device) - starts[groups[order]]
    return torch.zeros_like(order).scatter(-1, order, places)


def capped_top_k(scores: Tensor, groups: Tensor, cap: int, k: int) -> Tensor:
    """The k best tokens of which at most `cap` are of one group, best first, (B, k).

    Args:
        scores: (B, N).
        groups: Group number of each token, (N,).
        cap: Largest number from one group.
        k: Tokens to pick.

    Raises:
        BudgetError: The groups together cannot give k tokens under the cap.
    """
    room = int(torch.bincount(groups).clamp_max(cap).sum())
    if k > room:
        raise BudgetError(f"{k} tokens with at most {cap} of each group need more than {room}", hint="raise the cap")
    return top_k(scores.masked_fill(rank_in_group(scores, groups) >= cap, -torch.inf), k)


def split_budget(weights: Tensor, k: int, room: Tensor) -> Tensor:
    """Share k tokens out among P groups in proportion to their weights, none above its room, (B, P) int64.

    Whole shares first; what the small groups cannot take goes to the others in proportion, the remainder one by one
    to the heaviest groups that have room.

    Args:
        weights: (B, P), >= 0.
        k: Tokens, at most the sum of the room.
        room: Size of each group, (P,) int64.
    """
    # float64: a share that is a whole number must not lose its last token to rounding
    weights = weights.double().clamp_min(0.0) + 1e-12
    full = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    quota = torch.zeros(weights.shape, dtype=torch.long, device=weights.device)
    for _ in range(weights.shape[-1] + 1):  # each round but the last may find a group that is full
        shared = k - (room * full).sum(dim=-1, keepdim=True)
        open_weights = weights * ~full
        share = open_weights / open_weights.sum(dim=-1, keepdim=True).clamp_min(1e-300)
        quota = torch.where(full, room, (share * shared).floor().long())
        full = full | (quota >= room)
    quota = torch.minimum(quota, room)
    left = k - quota.sum(dim=-1, keepdim=True)
    order = weights.masked_fill(quota >= room, -1.0).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.zeros_like(order).scatter(-1, order, places)
    return torch.minimum(quota + (rank < left).long(), room)
