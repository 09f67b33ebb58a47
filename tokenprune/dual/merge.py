"""What becomes of the dropped tokens: nothing, a weighted mean into a kept row, or a weight on a kept key.

A kept token that stands for w tokens gets log(w) added to its attention logit, so that softmax gives it the mass of
all of them (the idea of ToMe's proportional attention, Bolya et al., ICLR 2023, eq. 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.dual.duplication import Duplication
from tokenprune.errors import ConfigError


def assign(similarity: Duplication, kept: Tensor) -> Tensor:
    """The kept token that each token is most similar to, as a slot 0..K-1, (B, N).

    Kept tokens belong to themselves; ties go to the lower slot.

    Args:
        similarity: Any similarity of the N tokens.
        kept: Indices of the kept tokens, (B, K).
    """
    columns = similarity.block(None, kept)
    slots = torch.arange(kept.shape[-1], device=kept.device)
    best = columns.amax(dim=-1, keepdim=True)
    nearest = torch.where(columns == best, slots, kept.shape[-1] - 1).amin(dim=-1)
    return nearest.scatter(-1, kept, slots.expand_as(kept))


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
    slots, tokens = kept.shape[-1], assignment.shape[-1]
    rows = torch.arange(slots, device=kept.device).view(1, slots, 1)
    member = (assignment.unsqueeze(1) == rows).float()
    own = torch.nn.functional.one_hot(kept, tokens).float()
    others = member * (1.0 - own.amax(dim=1, keepdim=True))  # a kept token is no other row's source
    count = others.sum(dim=-1, keepdim=True)
    if double:
        return own + others / count.clamp_min(1.0)
    return (own + others) / (1.0 + count)


def stride_targets(rest: Tensor, count: int) -> Tensor:
    """Positions of `count` merge targets, spread evenly over a list of remaining tokens, (B, count).

    Args:
        rest: Indices of the remaining tokens in raster order, (B, M).
        count: Number of targets, 1 <= count <= M.

    Source: Yang et al., "VisionZip", CVPR 2025: every floor(M / count)-th, the first `count` of them.
    """
    step = max(1, rest.shape[-1] // count)
    return rest[:, : step * count : step]


def bipartite_merge(similarity: Duplication, remove: int) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching: the even tokens' `remove` best matches among the odd ones.

    Args:
        similarity: Any similarity of the N tokens.
        remove: Tokens that go, 0 <= remove <= ceil(N / 2) and < N.

    Returns:
        Kept indices (B, N - remove), ascending, and the slot of every token among them, (B, N).

    Raises:
        ConfigError: `remove` is out of range.

    Source: Bolya et al., "Token Merging", ICLR 2023, section 3.
    """
    tokens, units = similarity.tokens, similarity.units
    even = torch.arange(0, tokens, 2, device=similarity.device)
    odd = torch.arange(1, tokens, 2, device=similarity.device)
    if not 0 <= remove <= (even.numel() if odd.numel() else 0):
        raise ConfigError(f"cannot merge {remove} of {tokens} tokens in one round", hint="merge at most half of them")
    everything = torch.arange(tokens, device=similarity.device).expand(units, -1)
    if remove == 0:
        return everything, everything
    scores = similarity.block(even.expand(units, -1), odd.expand(units, -1))
    best = scores.amax(dim=-1, keepdim=True)
    partner = torch.where(scores == best, torch.arange(odd.numel(), device=odd.device), odd.numel() - 1).amin(dim=-1)
    gone = best.squeeze(-1).sort(dim=-1, descending=True, stable=True).indices[:, :remove]
    dropped = torch.zeros(units, tokens, dtype=torch.bool, device=odd.device).scatter(-1, even[gone], True)
    kept = dropped.sort(dim=-1, stable=True).indices[:, : tokens - remove]
    slot = torch.zeros(units, tokens, dtype=torch.long, device=odd.device)
    slot = slot.scatter(-1, kept, torch.arange(tokens - remove, device=odd.device).expand(units, -1))
    target = odd[partner.gather(-1, gone)]
    return kept, slot.scatter(-1, even[gone], slot.gather(-1, target))
