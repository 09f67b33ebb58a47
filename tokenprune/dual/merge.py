"""What becomes of the dropped tokens: nothing, a weighted mean into a kept row, or a weight on a kept key.

A kept token that stands for w tokens gets log(w) added to its attention logit, so that softmax gives it the mass of
all of them (the idea of ToMe's proportional attention, Bolya et al., ICLR 2023, eq. 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.dual.duplication import Duplication
from tokenprune.dual.tiling import tiles
from tokenprune.errors import ConfigError


def assign(similarity: Duplication, kept: Tensor) -> Tensor:
    """The kept token that each token is most similar to, as a slot 0..K-1, (B, N).

    Kept tokens belong to themselves; ties go to the lower slot.

    Args:
        similarity: Any similarity of the N tokens.
        kept: Indices of the kept tokens, (B, K).
    """
    everything = torch.arange(similarity.tokens, device=kept.device).expand(similarity.units, -1)
    _, nearest = best_match(similarity, everything, kept)
    return nearest.scatter(-1, kept, torch.arange(kept.shape[-1], device=kept.device).expand_as(kept))


def best_match(similarity: Duplication, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """For each of some tokens the most similar of others: similarity and position 0..C-1 in `columns`, (B, M) each.

    Ties go to the lower position.

    Args:
        similarity: Any similarity of the N tokens.
        rows: Indices of the tokens that look, (B, M).
        columns: Indices of the tokens that are looked at, (B, C).
    """
    places = torch.arange(columns.shape[-1], device=columns.device)
    position = torch.empty_like(rows)
    largest = torch.empty(rows.shape, device=rows.device)
    for part in tiles(rows.shape[-1], columns.shape[-1]):
        block = similarity.block(rows[:, part], columns)
        best = block.amax(dim=-1, keepdim=True)
        largest[:, part] = best.squeeze(-1)
        position[:, part] = torch.where(block == best, places, columns.shape[-1] - 1).amin(dim=-1)
    return largest, position


def represented(assignment: Tensor, kept: Tensor, mass: Tensor | None = None, *, cap: float = 0.0) -> Tensor:
    """How many tokens each kept token stands for, itself included, (B, K) float32, at least 1.

    Args:
        assignment: Slots, (B, N), as `assign` gives them.
        kept: Indices of the kept tokens, (B, K).
        mass: Attention mass or any positive size of each token, (B, N): w_j = 1 + sum of the assigned tokens' masses
            relative to the kept token's own. `None` counts every token once.
        cap: Largest w_j allowed; 0 sets no limit.

    Raises:
        ConfigError: The cap is not 0 and below 1.
    """
    if cap and cap < 1.0:
        raise ConfigError(f"the cap of a mass correction must be 0 or >= 1, got {cap}", hint="0 sets no limit")
    share = torch.ones_like(assignment, dtype=torch.float32) if mass is None else mass.float()
    share = share.scatter(-1, kept, 0.0)
    total = torch.zeros_like(kept, dtype=torch.float32).scatter_add(-1, assignment, share)
    if mass is not None:
        total = total / mass.float().gather(-1, kept).clamp_min(torch.finfo(torch.float32).tiny)
    weight = (1.0 + total).clamp_max(torch.finfo(torch.float32).max)
    return weight.clamp_max(cap) if cap else weight


def mean_map(assignment: Tensor, kept: Tensor, *, double: bool = False) -> Tensor:
    """Merge map (B, K, N): each emitted row is the mean of the kept token and the tokens assigned to it.

    Args:
        assignment: Slots, (B, N); -1 marks tokens that go nowhere.
        kept: Indices of the kept tokens, (B, K).
        double: Kept token *plus* the mean of the assigned ones, so that weights sum to 2 (as VisionZip publishes it).
    """
    units, slots = kept.shape
    own = torch.arange(slots, device=kept.device).expand_as(kept)
    other = (assignment >= 0).float().scatter(-1, kept, 0.0)  # a kept token is no other row's source
    slot = assignment.clamp_min(0).scatter(-1, kept, own)
    count = torch.zeros(units, slots, device=kept.device).scatter_add(-1, slot, other)
    share = 1.0 / count.clamp_min(1.0) if double else 1.0 / (1.0 + count)
    weight = other * share.gather(-1, slot)
    weight = weight.scatter(-1, kept, torch.ones_like(share) if double else share)
    rows = torch.zeros(units, slots, assignment.shape[-1], device=kept.device)
    return rows.scatter_(1, slot.unsqueeze(1), weight.unsqueeze(1))  # each token is in one row at most


def stride_targets(rest: Tensor, count: int) -> Tensor:
    """Positions of `count` merge targets, spread evenly over a list of remaining tokens, (B, count).

    Args:
        rest: Indices of the remaining tokens in raster order, (B, M).
        count: Number of targets, 1 <= count <= M.

    Source: Yang et al., "VisionZip", CVPR 2025: every floor(M / count)-th, the first `count` of them.
    """
    step = max(1, rest.shape[-1] // count)
    return rest[:, : step * count : step]
