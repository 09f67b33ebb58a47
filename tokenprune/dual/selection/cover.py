"""Coverage weighed on the side of the candidate, and importance that walks along a graph of duplicates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenprune.dual.duplication import Duplication
from tokenprune.dual.selection.select import first_largest
from tokenprune.dual.tiling import HELD, KEPT, TiledMatrix
from tokenprune.errors import BudgetError, ConfigError

Combine = Literal["multiply", "add"]


def weighted_gain(weight: Tensor, similarity: Duplication, k: int, *, combine: Combine = "multiply") -> Tensor:
    """Greedy: the token with the largest weight x coverage that it adds, in the order of the picks, (B, k).

    gain_i = w_i sum_j max(0, D_ij - c_j), then c_j = max(c_j, D_pick,j) from c = 0. The weight stands at the
    candidate, not at what is covered (see `coverage`), so that this is no greedy ascent of one fixed function of the
    set. Every step reads the whole matrix, which is kept up to 1 GiB and made again, tile by tile, beyond.

    Args:
        weight: w >= 0, (B, N).
        similarity: D, signed or not; negative entries never count.
        k: Tokens to pick.
        combine: `multiply` weight and gain, or `add` them.

    Raises:
        BudgetError: k is out of range.
        ConfigError: Unknown `combine`.

    Source: "SCOPE: saliency-coverage oriented token pruning", NeurIPS 2025.
    """
    tokens = weight.shape[-1]
    if not 1 <= k <= tokens:
        raise BudgetError(f"cannot select {k} of {tokens} tokens", hint=f"select between 1 and {tokens}")
    if combine not in ("multiply", "add"):
        raise ConfigError(f"unknown combination `{combine}`", hint="use `multiply` or `add`")
    matrix, weight = _every_pair(similarity, hold=HELD), weight.float()
    covered = torch.zeros_like(weight)
    taken = torch.zeros_like(weight, dtype=torch.bool)
    picks = []
    for _ in range(k):
        added = torch.cat([(tile - covered.unsqueeze(1)).clamp_min_(0.0).sum(dim=-1) for _, tile in matrix], dim=1)
        gain = weight * added if combine == "multiply" else weight + added
        pick = first_largest(gain.masked_fill(taken, -torch.inf))
        picks.append(pick)
        taken = taken.scatter(-1, pick.unsqueeze(-1), True)
        column = matrix.column(pick)
        if column is None:
            column = similarity.block(None, pick.unsqueeze(-1)).squeeze(-1)
        covered = torch.maximum(covered, column)
    return torch.stack(picks, dim=-1)


def propagated(
    weight: Tensor, similarity: Duplication, *, threshold: float, temperature: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Weights after `steps` steps of a random walk on the graph of similar tokens, and its degrees, (B, N) each.

    An edge joins tokens of similarity >= threshold; transition probabilities are a softmax over the edges of a token.

    Args:
        weight: w, (B, N).
        similarity: Signed cosine.
        threshold: Smallest similarity of an edge, > 0.
        temperature: tau of the softmax.
        steps: Number of steps.

    Returns:
        wᵀ Pˢ, and the number of edges of each token (itself included).

    Source: Jiang et al., "G-Prune", AAAI 2025.
    """
    places = torch.arange(similarity.tokens, device=similarity.device)
    cosines = _every_pair(similarity, hold=KEPT)
    degree = cosines.over_rows(lambda _, cosine: (cosine >= threshold).sum(dim=-1)).clamp_min(1).float()
    walked = weight.float()
    for _ in range(steps):
        flow = torch.zeros_like(walked)
        for part, cosine in cosines:
            edges = cosine >= threshold
            lonely = ~edges.any(dim=-1, keepdim=True)  # a zero vector has no edge, not even to itself
            logits = (cosine / temperature).masked_fill_(~edges, -torch.inf)
            logits.masked_fill_(lonely & (places[part, None] == places), 0.0)
            flow += (walked[:, None, part] @ torch.softmax(logits, dim=-1)).squeeze(1)
        walked = flow
    return walked, degree


def _every_pair(similarity: Duplication, *, hold: int) -> TiledMatrix:
    """The whole matrix, (B, N, N), some rows at a time."""
    units, tokens = similarity.units, similarity.tokens
    places = torch.arange(tokens, device=similarity.device).expand(units, -1)
    return TiledMatrix(lambda part: similarity.block(places[:, part], places), (units, tokens, tokens), hold=hold)
