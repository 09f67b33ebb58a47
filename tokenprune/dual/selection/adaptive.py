"""Counts that follow from the data instead of a budget."""

from __future__ import annotations

import torch
from torch import Tensor


def outliers(scores: Tensor) -> Tensor:
    """How many scores of each unit lie above the upper fence of a box plot, Q3 + 1.5 (Q3 - Q1), (B,) int64.

    Args:
        scores: (B, N).

    Source: the adaptive token selection of LLaVA-PruMerge (Shang et al., ICCV 2025).
    """
    scores = scores.float()
    quartiles = torch.quantile(scores, torch.tensor([0.25, 0.75], device=scores.device), dim=-1)
    fence = quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])
    return (scores > fence.unsqueeze(-1)).sum(dim=-1)
