"""Coverage weighed on the side of the candidate, and importance that walks along a graph of duplicates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenprune.dual.duplication import Duplication
from tokenprune.dual.select import first_largest
from tokenprune.errors import BudgetError, ConfigError

Combine = Literal["multiply", "add"]


def weighted_gain(weight: Tensor, similarity: Duplication, k: int, *, combine: Combine = "multiply") -> Tensor:
    """Greedy: the token with the largest weight x coverage that it adds, in the order of the picks, (B, k).

    gain_i = w_i sum_j max(0, D_ij - c_j), then c_j = max(c_j, D_pick,j) from c = 0. The weight stands at the
    candidate, not at what is covered (see `coverage`), so that this is no greedy ascent of one fixed function of the
    set. Holds the whole matrix, (B, N, N).

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
    matrix, weight = similarity.full(), weight.float()
    covered = torch.zeros_like(weight)
    taken = torch.zeros_like(weight, dtype=torch.bool)
    picks = []
    for _ in range(k):
        added = (matrix - covered.unsqueeze(1)).clamp_min(0.0).sum(dim=-1)
        gain = weight * added if combine == "multiply" else weight + added
        pick = first_largest(gain.masked_fill(taken, -torch.inf))
        picks.append(pick)
        taken = taken.scatter(-1, pick.unsqueeze(-1), True)
        covered = torch.maximum(covered, matrix.gather(1, pick[:, None, None].expand(-1, 1, tokens)).squeeze(1))
    return torch.stack(picks, dim=-1)


def propagated(
    weight: Tensor, similarity: Tensor, *, threshold: float, temperature: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Weights after `steps` steps of a random walk on the graph of similar tokens, and its degrees, (B, N) each.

    An edge joins tokens of similarity >= threshold; transition probabilities are a softmax over the edges of a token.

    Args:
        weight: w, (B, N).
        similarity: Signed cosine, (B, N, N).
        threshold: Smallest similarity of an edge, > 0.
        temperature: tau of the softmax.
        steps: Number of steps.

    Returns:
        wᵀ Pˢ, and the number of edges of each token (itself included).

    Source: Jiang et al., "G-Prune", AAAI 2025.
    """
    edges = similarity >= threshold
    logits = torch.where(edges, similarity / temperature, torch.full_like(similarity, -torch.inf))
    lonely = ~edges.any(dim=-1, keepdim=True)  # a zero vector has no edge, not even to itself
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    transition = torch.softmax(torch.where(lonely & itself, 0.0, logits), dim=-1)
    walked = weight.float().unsqueeze(1)
    for _ in range(steps):
        walked = walked @ transition
    return walked.squeeze(1), edges.sum(dim=-1).clamp_min(1).float()
