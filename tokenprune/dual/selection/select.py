"""Selectors: how magnitude and duplication are traded against each other.

All are deterministic, give exactly k distinct indices per unit, break ties towards the lower index, and never read
a value back to the host inside their loops. Results are in the order of the picks; `Decision.keep` sorts them.

Ties are scores that are equal to the last bit. The scores of two copies of a token may differ by rounding, depending
on the machine's matrix product; the order of scores that are equal within rounding is not promised. They are not made
equal here: a tolerance would join chains of close scores of different tokens, and then the index would choose.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenprune.dual.duplication import Duplication
from tokenprune.dual.tiling import tiles
from tokenprune.errors import BudgetError, ConfigError

Schedule = Literal["exact", "fixed", "growing", "shrinking"]
Overlap = Literal["max", "mean"]

#: Rounds of in-chunk suppression. An odd number gives a subset of what the sequential scan accepts, so that no two
#: accepted tokens ever overlap; chains of more than this many overlapping candidates wait for the next chunk.
SUPPRESSION_ROUNDS = 7


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores, largest first, ties to the lower index, (B, k).

    Args:
        scores: (B, N); NaN counts as the smallest.
        k: 1 <= k <= N.

    Raises:
        BudgetError: k is out of range.
    """
    _check_count(k, scores.shape[-1])
    scores = scores.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def first_largest(scores: Tensor) -> Tensor:
    """Index of the largest entry of each row, the lowest one where several are equal, (B,)."""
    count = scores.shape[-1]
    places = torch.arange(count, device=scores.device)
    best = scores.amax(dim=-1, keepdim=True)
    return torch.where(scores == best, places, count - 1).amin(dim=-1)


def mmr(
    magnitude: Tensor, duplication: Duplication, k: int, *, trade_off: float = 0.5, overlap: Overlap = "max"
) -> Tensor:
    """Maximal marginal relevance, one token at a time, (B, k).

    argmax_i trade_off magnitude_i - (1 - trade_off) overlap_{j in S} D_ij.

    Args:
        magnitude: (B, N), on the scale of the duplication (see `scaled`).
        duplication: D.
        k: Tokens to pick.
        trade_off: lambda in [0, 1]; 1 is top-k, 0 is max-min.
        overlap: Penalise the largest or the mean duplication with the tokens picked so far.

    Raises:
        BudgetError: k is out of range.
        ConfigError: trade_off or overlap is not allowed.
    """
    return chunked_mmr(magnitude, duplication, k, trade_off=trade_off, overlap=overlap, schedule="exact")


def chunk_sizes(k: int, schedule: Schedule, *, first: int = 8, growth: float = 0.5) -> list[int]:
    """How many tokens each step of a chunked selection takes; the sizes sum to k.

    Args:
        k: Tokens to pick.
        schedule: `exact` one by one; `fixed` chunks of `first`; `growing` max(first, growth x picked so far);
            `shrinking` growth x what is still to pick, at least 1.
        first: Size of the first (growing) or every (fixed) chunk.
        growth: Rate of the growing and the shrinking schedule.

    Raises:
        ConfigError: Unknown schedule, first < 1, or growth outside (0, 1].
    """
    if schedule not in ("exact", "fixed", "growing", "shrinking"):
        raise ConfigError(f"unknown schedule `{schedule}`", hint="use `exact`, `fixed`, `growing` or `shrinking`")
    if first < 1 or not 0.0 < growth <= 1.0:
        raise ConfigError(
            f"chunks need first >= 1 and 0 < growth <= 1, got first={first}, growth={growth}",
            hint="for example first=8, growth=0.5",
        )
    sizes: list[int] = []
    picked = 0
    while picked < k:
        left = k - picked
        if schedule == "exact":
            size = 1
        elif schedule == "fixed":
            size = first
        elif schedule == "growing":
            size = max(first, int(growth * picked))
        else:
            size = max(1, int(growth * left))
        sizes.append(min(size, left))
        picked += sizes[-1]
    return sizes


def chunked_mmr(
    magnitude: Tensor,
    duplication: Duplication,
    k: int,
    *,
    trade_off: float = 0.5,
    overlap: Overlap = "max",
    schedule: Schedule = "growing",
    first: int = 8,
    growth: float = 0.5,
    suppression: float = 0.0,
    oversample: int = 4,
) -> Tensor:
    """Maximal marginal relevance, several tokens per step, (B, k).

    Each step ranks the rest by the current marginal score and takes a chunk. Without suppression up to a chunk of
    near-copies enters before the penalty sees them. With it, the best `oversample` x chunk candidates are scanned in
    order and one that overlaps an accepted better one by more than the threshold waits; should too few be left, the
    chunk is filled by the marginal score that counts the accepted ones.

    Args:
        magnitude: (B, N), on the scale of the duplication.
        duplication: D.
        k: Tokens to pick.
        trade_off: lambda in [0, 1].
        overlap: `max` or `mean` over the tokens picked so far.
        schedule: See `chunk_sizes`.
        first: See `chunk_sizes`.
        growth: See `chunk_sizes`.
        suppression: Largest duplication allowed inside one chunk; 0 switches the check off.
        oversample: Candidates looked at per place in the chunk.

    Raises:
        BudgetError: k is out of range.
        ConfigError: An option is out of range.
    """
    tokens = magnitude.shape[-1]
    _check_count(k, tokens)
    if not 0.0 <= trade_off <= 1.0:
        raise ConfigError(f"trade_off must lie in [0, 1], got {trade_off}", hint="1 ignores duplication")
    if overlap not in ("max", "mean"):
        raise ConfigError(f"unknown overlap `{overlap}`", hint="use `max` or `mean`")
    if not 0.0 <= suppression <= 1.0 or oversample < 1:
        raise ConfigError(
            f"suppression must lie in [0, 1] and oversample be >= 1, got {suppression} and {oversample}",
            hint="0 switches suppression off, 0.5 to 0.7 are usual thresholds",
        )
    gain = trade_off * magnitude.float().nan_to_num(nan=torch.finfo(torch.float32).min)
    penalty = torch.zeros_like(gain)
    taken = torch.zeros_like(gain, dtype=torch.bool)
    picks: list[Tensor] = []
    picked = 0
    for size in chunk_sizes(k, schedule, first=first, growth=growth):
        seen = penalty if overlap == "max" else penalty / max(picked, 1)
        score = (gain - (1.0 - trade_off) * seen).masked_fill(taken, -torch.inf)
        if size == 1:
            chunk = first_largest(score).unsqueeze(-1)
        elif suppression > 0.0:
            pool = top_k(score, min(tokens - picked, oversample * size))
            inside = duplication.block(pool, pool)
            chunk = pool.gather(-1, _distinct_first(score.gather(-1, pool), inside, size, suppression, 1.0 - trade_off))
        else:
            chunk = top_k(score, size)
        picks.append(chunk)
        picked += size
        if picked < k:
            taken = taken.scatter(-1, chunk, True)
            for part in tiles(size, tokens):
                columns = duplication.block(None, chunk[:, part])
                penalty = torch.maximum(penalty, columns.amax(-1)) if overlap == "max" else penalty + columns.sum(-1)
    return torch.cat(picks, dim=-1)


def _distinct_first(score: Tensor, inside: Tensor, size: int, threshold: float, weight: float) -> Tensor:
    """Positions (B, size) in a pool sorted by score: first those that overlap no accepted better one, then fillers.

    Args:
        score: (B, M), descending.
        inside: Duplication within the pool, (B, M, M).
        size: Places to fill, <= M.
        threshold: Largest duplication allowed.
        weight: Weight of the duplication in the marginal score of the fillers.
    """
    count = score.shape[-1]
    better = torch.ones(count, count, dtype=torch.bool, device=score.device).tril(-1)  # [i, j]: j comes before i
    clash = (inside > threshold) & better
    accepted = torch.ones_like(score, dtype=torch.bool)
    for _ in range(min(SUPPRESSION_ROUNDS, count | 1)):
        accepted = ~(clash & accepted.unsqueeze(-2)).any(dim=-1)
    covered = inside.masked_fill(~accepted.unsqueeze(-2), 0.0).amax(dim=-1)
    filler = score - weight * covered
    by_filler = filler.sort(dim=-1, descending=True, stable=True).indices
    # Accepted ones keep their order by score (0..M-1), the others follow in the order of their filler score.
    rank = torch.arange(count, device=score.device).expand_as(score)
    filler_rank = torch.zeros_like(rank).scatter(-1, by_filler, rank.contiguous())
    key = torch.where(accepted, rank, count + filler_rank)
    return key.argsort(dim=-1, stable=True)[..., :size]


def max_min(similarity: Duplication, k: int) -> Tensor:
    """Farthest-point selection: repeatedly the token least similar to its most similar pick, (B, k).

    The first pick is the token whose nearest neighbour is farthest.

    Args:
        similarity: Signed cosine (or any symmetric similarity).
        k: Tokens to pick.

    Raises:
        BudgetError: k is out of range.

    Source: Alvar et al., "DivPrune", CVPR 2025 (max-min diversity problem, greedy solution).
    """
    tokens = similarity.tokens
    _check_count(k, tokens)
    nearest = _nearest(similarity)
    pick = first_largest(-nearest)
    picks = [pick]
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    closest = torch.full_like(nearest, -torch.inf)
    for _ in range(k - 1):
        taken = taken.scatter(-1, pick.unsqueeze(-1), True)
        closest = torch.maximum(closest, similarity.block(None, pick.unsqueeze(-1)).squeeze(-1))
        pick = first_largest((-closest).masked_fill(taken, -torch.inf))
        picks.append(pick)
    return torch.stack(picks, dim=-1)


def _nearest(similarity: Duplication) -> Tensor:
    """Largest similarity of each token with another one, (B, N); some columns at a time."""
    tokens, units, device = similarity.tokens, similarity.units, similarity.device
    places = torch.arange(tokens, device=device)
    nearest = torch.full((units, tokens), -torch.inf, device=device)
    for part in tiles(tokens, tokens):
        columns = places[part]
        block = similarity.block(None, columns.expand(units, -1))
        itself = places.unsqueeze(-1) == columns
        nearest = torch.maximum(nearest, block.masked_fill(itself, -torch.inf).amax(dim=-1))
    return nearest


def _check_count(k: int, tokens: int) -> None:
    if not 1 <= k <= tokens:
        raise BudgetError(f"cannot select {k} of {tokens} tokens", hint=f"select between 1 and {tokens}")
