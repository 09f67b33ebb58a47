"""Selectors of other families: determinantal point process, pivots, weighted coverage.

The same promises as in `select.py`: deterministic, exactly k distinct indices, ties to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.dual.duplication import Duplication
from tokenprune.dual.selection.select import first_largest
from tokenprune.dual.tiling import HELD, TiledMatrix
from tokenprune.errors import BudgetError

#: A residual below this share of the largest diagonal entry is rounding noise: the kept tokens span the token.
RANK_FLOOR = 1e-6


def dpp_greedy(relevance: Tensor, similarity: Duplication, k: int) -> Tensor:
    """Greedy maximum a posteriori of a DPP with kernel L = diag(r) S diag(r), (B, k).

    Each pick has the largest squared residual after projection on the picks before it (pivoted Cholesky). Once the
    picks span everything that is left (rank of S below k), the rest is taken by r_i^2 S_ii.

    Args:
        relevance: r >= 0, (B, N).
        similarity: S, a signed Gram matrix.
        k: Tokens to pick.

    Raises:
        BudgetError: k is out of range.

    Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process", NeurIPS 2018, algorithm 1.
    """
    tokens = relevance.shape[-1]
    if not 1 <= k <= tokens:
        raise BudgetError(f"cannot select {k} of {tokens} tokens", hint=f"select between 1 and {tokens}")
    relevance = relevance.float()
    diagonal = relevance.square() * _self_similarity(similarity)
    floor = RANK_FLOOR * diagonal.amax(dim=-1, keepdim=True)
    residual = diagonal.clone()
    factors = relevance.new_zeros(relevance.shape[0], tokens, k)
    taken = torch.zeros_like(residual, dtype=torch.bool)
    picks: list[Tensor] = []
    for step in range(k):
        open_residual = residual.masked_fill(taken | (residual <= floor), 0.0)
        spanned = (open_residual <= 0.0).all(dim=-1, keepdim=True)
        pick = first_largest(torch.where(spanned, diagonal, open_residual).masked_fill(taken, -torch.inf))
        picks.append(pick)
        at = pick.unsqueeze(-1)
        taken = taken.scatter(-1, at, True)
        pivot = residual.gather(-1, at)
        column = similarity.block(None, at).squeeze(-1) * relevance * relevance.gather(-1, at)
        row = factors.gather(1, at.unsqueeze(-1).expand(-1, -1, k)).squeeze(1)
        shadow = (factors @ row.unsqueeze(-1)).squeeze(-1)
        usable = pivot > floor
        factor = torch.where(usable, (column - shadow) / pivot.clamp_min(1e-30).sqrt(), torch.zeros_like(column))
        factors[:, :, step] = factor
        residual = (residual - factor.square()).clamp_min(0.0)
    return torch.stack(picks, dim=-1)


def pivot_dissimilar(similarity: Tensor, excluded: Tensor, picks: Sequence[int]) -> Tensor:
    """Each pivot in turn takes the tokens least similar to it from what is left, (B, sum of picks).

    Args:
        similarity: Similarity of the tokens to the pivots, in the order in which the pivots choose, (B, P, N).
        excluded: Tokens outside the pool from the start (the pivots themselves), (B, N) bool.
        picks: How many tokens each of the P pivots takes.

    Raises:
        BudgetError: The pool is smaller than the sum of the picks.

    Source: Wen et al., "DART", EMNLP 2025.
    """
    pool = similarity.shape[-1] - int(excluded.sum(dim=-1).max())
    if sum(picks) > pool:
        raise BudgetError(f"pivots want {sum(picks)} tokens of a pool of {pool}", hint="use fewer picks")
    chosen = []
    gone = excluded.clone()
    for pivot, count in enumerate(picks):
        if count == 0:
            continue
        far = (-similarity[:, pivot].float()).masked_fill(gone, -torch.inf)
        pick = far.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        gone = gone.scatter(-1, pick, True)
        chosen.append(pick)
    if not chosen:
        return torch.empty(similarity.shape[0], 0, dtype=torch.long, device=similarity.device)
    return torch.cat(chosen, dim=-1)


def coverage(weight: Tensor, similarity: Duplication, k: int) -> Tensor:
    """Greedy facility location: the token that most raises sum_j w_j max_{s in S} D_js, (B, k).

    Every step reads the whole matrix, which is kept up to 1 GiB and made again, tile by tile, beyond.

    Args:
        weight: w >= 0, how much each token wants to be represented, (B, N).
        similarity: D in [0, 1].
        k: Tokens to pick.

    Raises:
        BudgetError: k is out of range.
    """
    tokens = weight.shape[-1]
    if not 1 <= k <= tokens:
        raise BudgetError(f"cannot select {k} of {tokens} tokens", hint=f"select between 1 and {tokens}")
    places = torch.arange(tokens, device=similarity.device).expand(similarity.units, -1)
    matrix = TiledMatrix(
        lambda part: similarity.block(None, places[:, part]).transpose(1, 2),
        (similarity.units, tokens, tokens),
        hold=HELD,
    )
    weight = weight.float()
    covered = torch.zeros_like(weight)
    taken = torch.zeros_like(weight, dtype=torch.bool)
    picks = []
    for _ in range(k):
        gain = torch.cat([_gain(tile, weight, covered) for _, tile in matrix], dim=1)
        pick = first_largest(gain.masked_fill(taken, -torch.inf))
        picks.append(pick)
        taken = taken.scatter(-1, pick.unsqueeze(-1), True)
        column = matrix.column(pick)
        if column is None:
            column = similarity.block(None, pick.unsqueeze(-1)).squeeze(-1)
        covered = torch.maximum(covered, column)
    return torch.stack(picks, dim=-1)


def _gain(similarity: Tensor, weight: Tensor, covered: Tensor) -> Tensor:
    """What some candidates (B, n, N) add to the weighted coverage, (B, n)."""
    return (similarity - covered.unsqueeze(1)).clamp_min_(0.0).mul_(weight.unsqueeze(1)).sum(dim=-1)


def _self_similarity(similarity: Duplication, width: int = 1024) -> Tensor:
    """Diagonal of S, (B, N); `width` columns at a time."""
    places = torch.arange(similarity.tokens, device=similarity.device)
    parts = []
    for start in range(0, similarity.tokens, width):
        columns = places[start : start + width].expand(similarity.units, -1)
        parts.append(similarity.block(columns, columns).diagonal(dim1=-2, dim2=-1))
    return torch.cat(parts, dim=-1)
