"""Index sets of tokens: the rest of a selection, and selections as rows of a merge map."""

from __future__ import annotations

import torch
from torch import Tensor


def complement(taken: Tensor, tokens: int) -> Tensor:
    """The other indices of 0..tokens-1 in ascending order, (B, N - K).

    Args:
        taken: Distinct indices, (B, K).
        tokens: N.
    """
    gone = torch.zeros(taken.shape[0], tokens, dtype=torch.bool, device=taken.device).scatter(-1, taken, True)
    return gone.sort(dim=-1, stable=True).indices[:, : tokens - taken.shape[-1]]


def one_hot(indices: Tensor, tokens: int) -> Tensor:
    """Rows of the identity, which keep tokens as they are in a merge map: (B, K) -> (B, K, N) float32."""
    rows = torch.zeros(*indices.shape, tokens, device=indices.device)
    return rows.scatter(-1, indices.unsqueeze(-1), 1.0)


def member_mask(indices: Tensor, tokens: int) -> Tensor:
    """Which of the N tokens are in a selection: (B, K) -> (B, N) bool."""
    mask = torch.zeros(indices.shape[0], tokens, dtype=torch.bool, device=indices.device)
    return mask.scatter(-1, indices, True)
