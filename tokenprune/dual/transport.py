"""Entropic optimal transport between tokens, in log space."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.errors import ConfigError


def transported_mass(rows: Tensor, columns: Tensor, cost: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Row sums of the transport plan after some Sinkhorn iterations, (B, N).

    Each iteration scales the rows to their marginal, then the columns to theirs. Ending with the columns matters:
    after a row update the row sums would be the imposed marginal itself, whatever the cost.

    Args:
        rows: Marginal of the rows, (B, N), >= 0; scaled to sum to 1.
        columns: Marginal of the columns, (B, M), >= 0; scaled to sum to 1.
        cost: (B, N, M).
        epsilon: Strength of the entropy, > 0.
        iterations: At least 1.

    Raises:
        ConfigError: epsilon or iterations is out of range.

    Source: Cuturi, "Sinkhorn Distances", NeurIPS 2013, algorithm 1, with logarithms.
    """
    if epsilon <= 0.0 or iterations < 1:
        raise ConfigError(f"transport needs epsilon > 0 and iterations >= 1, got {epsilon} and {iterations}")
    kernel = -cost.float() / epsilon
    row_logs, column_logs = _log_share(rows), _log_share(columns)
    right = torch.zeros_like(column_logs)
    for _ in range(iterations):
        left = row_logs - torch.logsumexp(kernel + right.unsqueeze(1), dim=2)
        right = column_logs - torch.logsumexp(kernel + left.unsqueeze(2), dim=1)
    return (left + torch.logsumexp(kernel + right.unsqueeze(1), dim=2)).exp()


def _log_share(mass: Tensor) -> Tensor:
    """Logarithms of masses (B, N) as shares; an image of no mass shares evenly."""
    mass = mass.float().clamp_min(0.0)
    total = mass.sum(dim=-1, keepdim=True)
    share = torch.where(total > 0, mass / total.clamp_min(1e-30), torch.full_like(mass, 1.0 / mass.shape[-1]))
    return share.clamp_min(1e-12).log()
