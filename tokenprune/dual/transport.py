"""Entropic optimal transport between tokens, in log space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenprune.dual.tiling import KEPT, TiledMatrix
from tokenprune.errors import ConfigError


def transported_mass(
    rows: Tensor, columns: Tensor, cost: Tensor | Callable[[slice], Tensor], *, epsilon: float, iterations: int
) -> Tensor:
    """Row sums of the transport plan after some Sinkhorn iterations, (B, N).

    Each iteration scales the rows to their marginal, then the columns to theirs. Ending with the columns matters:
    after a row update the row sums would be the imposed marginal itself, whatever the cost.

    Args:
        rows: Marginal of the rows, (B, N), >= 0; scaled to sum to 1.
        columns: Marginal of the columns, (B, M), >= 0; scaled to sum to 1.
        cost: (B, N, M), or a function that gives its rows (B, n, M) for a slice of the N. Every iteration reads it
            once; what a function gives is made again each time where it is large.
        epsilon: Strength of the entropy, > 0.
        iterations: At least 1.

    Raises:
        ConfigError: epsilon or iterations is out of range.

    Source: Cuturi, "Sinkhorn Distances", NeurIPS 2013, algorithm 1, with logarithms.
    """
    if epsilon <= 0.0 or iterations < 1:
        raise ConfigError(f"transport needs epsilon > 0 and iterations >= 1, got {epsilon} and {iterations}")
    units, count, other = *rows.shape, columns.shape[1]

    def kernel_rows(part: slice) -> Tensor:
        return (cost[:, part] if isinstance(cost, Tensor) else cost(part)).float() / -epsilon

    kernel = TiledMatrix(kernel_rows, (units, count, other), hold=KEPT)
    row_logs, column_logs = _log_share(rows), _log_share(columns)
    right = torch.zeros_like(column_logs)
    for _ in range(iterations):
        sums = []
        for part, tile in kernel:
            left = row_logs[:, part] - torch.logsumexp(tile + right.unsqueeze(1), dim=2)
            sums.append(torch.logsumexp(tile + left.unsqueeze(2), dim=1))
        right, before = column_logs - torch.logsumexp(torch.stack(sums), dim=0), right
    # the last left factor once more, beside the row sums that it leads to
    return kernel.over_rows(
        lambda part, tile: (
            row_logs[:, part]
            - torch.logsumexp(tile + before.unsqueeze(1), dim=2)
            + torch.logsumexp(tile + right.unsqueeze(1), dim=2)
        ).exp()
    )


def _log_share(mass: Tensor) -> Tensor:
    """Logarithms of masses (B, N) as shares; an image of no mass shares evenly."""
    mass = mass.float().clamp_min(0.0)
    total = mass.sum(dim=-1, keepdim=True)
    share = torch.where(total > 0, mass / total.clamp_min(1e-30), torch.full_like(mass, 1.0 / mass.shape[-1]))
    return share.clamp_min(1e-12).log()
