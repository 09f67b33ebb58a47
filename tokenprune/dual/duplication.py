"""Duplication: how much of a token's update is already there.

A provider gives columns of the similarity matrix D (B, N, N) for chosen tokens, on demand. Heads are added up one by
one, so that no tensor of N x N x heads ever exists; a caller that takes only the columns of the K chosen tokens pays
N x K. Means are subtracted before the Gram matrix, exponents are clamped at 0: D lies in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenprune.dual.magnitude import squared_distance
from tokenprune.dual.tiling import tiles
from tokenprune.dual.view import centre, group_queries, l2_normalize
from tokenprune.errors import ConfigError


class Duplication(Protocol):
    """A symmetric similarity of N tokens in each of B units, given column by column."""

    @property
    def units(self) -> int:
        """B."""
        ...

    @property
    def tokens(self) -> int:
        """N."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        ...

    def block(self, rows: Tensor | None, columns: Tensor) -> Tensor:
        """D[rows, columns], (B, M, C), for index tensors (B, M) and (B, C); `rows=None` means all N rows."""
        ...

    def full(self) -> Tensor:
        """The whole matrix, (B, N, N)."""
        ...


@dataclass(frozen=True)
class KernelDuplication:
    """Mean over heads of max(0, cos(v_i, v_j)) exp(-||k_i - k_j||^2 / 2).

    Args:
        values: Unit vectors (B, G, N, d), or `None` for a factor of 1.
        keys: Keys divided by their bandwidth (B, G, N, e), or `None` for a factor of 1.
        signed: Keep negative cosines (a determinant wants a true Gram matrix, a penalty does not).

    Raises:
        ConfigError: Neither values nor keys.
    """

    values: Tensor | None = None
    keys: Tensor | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if self.values is None and self.keys is None:
            raise ConfigError("a duplication needs values or keys", hint="give at least one of them")

    @property
    def _some(self) -> Tensor:
        given = self.values if self.values is not None else self.keys
        assert given is not None  # noqa: S101 - __post_init__ saw to it
        return given

    @property
    def units(self) -> int:
        """B."""
        return self._some.shape[0]

    @property
    def tokens(self) -> int:
        """N."""
        return self._some.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self._some.device

    def block(self, rows: Tensor | None, columns: Tensor) -> Tensor:
        """D[rows, columns], (B, M, C); one head at a time."""
        heads = self._some.shape[1]
        total: Tensor | None = None
        for head in range(heads):
            part = self._head(head, rows, columns)
            total = part if total is None else total.add_(part)
        assert total is not None  # noqa: S101 - there is at least one head
        return total / heads

    def full(self) -> Tensor:
        """The whole matrix, (B, N, N)."""
        return self.block(None, torch.arange(self.tokens, device=self.device).expand(self.units, -1))

    def _head(self, head: int, rows: Tensor | None, columns: Tensor) -> Tensor:
        factor: Tensor | None = None
        if self.values is not None:
            left, right = _pick(self.values[:, head], rows), _pick(self.values[:, head], columns)
            factor = left @ right.transpose(-1, -2)
            factor = factor.clamp(-1.0, 1.0) if self.signed else factor.clamp(0.0, 1.0)
        if self.keys is None:
            assert factor is not None  # noqa: S101 - one of the two is there
            return factor
        left, right = _pick(self.keys[:, head], rows), _pick(self.keys[:, head], columns)
        squares = left.square().sum(-1, keepdim=True) + right.square().sum(-1).unsqueeze(-2)
        kernel = (left @ right.transpose(-1, -2) - 0.5 * squares).clamp_max(0.0).exp()
        return kernel if factor is None else factor * kernel


@dataclass(frozen=True)
class DenseDuplication:
    """A similarity matrix that is already there, (B, N, N)."""

    matrix: Tensor

    @property
    def units(self) -> int:
        """B."""
        return self.matrix.shape[0]

    @property
    def tokens(self) -> int:
        """N."""
        return self.matrix.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.matrix.device

    def block(self, rows: Tensor | None, columns: Tensor) -> Tensor:
        """D[rows, columns], (B, M, C)."""
        chosen = self.matrix.gather(-1, columns.unsqueeze(1).expand(-1, self.tokens, -1))
        return _pick(chosen, rows)

    def full(self) -> Tensor:
        """The matrix itself, (B, N, N)."""
        return self.matrix


def value_key_duplication(
    values: Tensor, keys: Tensor | None, *, tau: float = 1.0, centred_values: bool = False
) -> KernelDuplication:
    """Value cosine x key Gaussian: cos(v_i, v_j) exp(-||k_i - k_j||^2 / (2 tau^2 sqrt(d))), mean over key-value heads.

    With tau = 1 it is the normalised inner product of two rank-1 updates under the softmax kernel.

    Args:
        values: (B, G, N, d).
        keys: (B, G, N, d), with RoPE or without, or `None` to compare values only.
        tau: Bandwidth; 0 takes it from the data, so that a typical nearest neighbour gets the key factor exp(-1/2).
        centred_values: Subtract the mean value first: values share a mean, which makes all cosines large.

    Source: Lee et al., "IWP", arXiv 2604.00757, eq. 11-12 (the Gaussian form follows from the definition of a norm).
    """
    directions = l2_normalize(centre(values) if centred_values else values)
    if keys is None:
        return KernelDuplication(values=directions)
    return KernelDuplication(values=directions, keys=bandwidth_scaled(centre(keys), tau, math.sqrt(keys.shape[-1])))


def metric_duplication(
    values: Tensor, keys: Tensor, queries: Tensor, mask: Tensor | None = None, *, tau: float = 1.0
) -> KernelDuplication:
    """Cosine of centred values x exp(-(k_i - k_j)^T Sigma (k_i - k_j) / (2 tau^2 d)), Sigma = query covariance.

    Two keys are the same where no query of the layer can tell them apart.

    Args:
        values: (B, G, N, d).
        keys: (B, G, N, d).
        queries: Queries of the heads that share each key-value head, (B, H, R, d).
        mask: (B, R), True = real row, or `None` for all.
        tau: Bandwidth; 0 takes it from the data.

    Source: Gaussian queries in the softmax kernel, E[kappa(q, k_i) kappa(q, k_j)] (own derivation).
    """
    groups = keys.shape[1]
    queries, mask = group_queries(queries.float(), mask, groups)
    rows = mask.unsqueeze(1).unsqueeze(-1)
    deviation = centre(queries, mask.unsqueeze(1).expand(-1, groups, -1)).masked_fill(~rows, 0.0)
    count = rows.sum(dim=2, keepdim=True).clamp_min(1)
    covariance = deviation.transpose(-1, -2) @ deviation / count
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    root = eigenvectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)
    keys = bandwidth_scaled(centre(keys) @ root, tau, float(keys.shape[-1]))
    return KernelDuplication(values=l2_normalize(centre(values)), keys=keys)


def cosine_duplication(features: Tensor, *, centred: bool = False, signed: bool = False) -> KernelDuplication:
    """Cosine of plain features (B, N, D), negative values clamped at 0 unless `signed`."""
    return KernelDuplication(values=l2_normalize(centre(features) if centred else features).unsqueeze(1), signed=signed)


def bandwidth_scaled(keys: Tensor, tau: float, published: float) -> Tensor:
    """Divide keys (B, G, N, e) by the bandwidth: sqrt(tau^2 x published), or from the data where tau is 0.

    Raises:
        ConfigError: tau is negative.
    """
    if tau < 0:
        raise ConfigError(f"the bandwidth tau must be >= 0, got {tau}", hint="1 as published, 0 from the data")
    if tau == 0:
        return keys / nearest_neighbour_bandwidth(keys).sqrt()[..., None, None]
    return keys / math.sqrt(tau * tau * published)


def nearest_neighbour_bandwidth(keys: Tensor) -> Tensor:
    """Median over the tokens of the squared distance to the nearest other token, (B, G).

    At least a thousandth of the keys' variance, so that a picture of mostly equal tokens still has a width.
    """
    keys = keys.float()
    units, groups, tokens, _ = keys.shape
    spread = centre(keys).square().sum(dim=-1).mean(dim=-1)
    if tokens == 1:
        return torch.ones(units, groups, device=keys.device)
    places = torch.arange(tokens, device=keys.device)
    medians = []
    for group in range(groups):
        own = keys[:, group] - keys[:, group].mean(dim=-2, keepdim=True)
        nearest = []
        for part in tiles(tokens, tokens):
            itself = places[part, None] == places
            nearest.append(squared_distance(own[:, part], own).masked_fill(itself, torch.inf).amin(dim=-1))
        medians.append(torch.cat(nearest, dim=-1).median(dim=-1).values)
    return torch.maximum(torch.stack(medians, dim=1), 1e-3 * spread).clamp_min(1e-12)


def _pick(x: Tensor, indices: Tensor | None) -> Tensor:
    """Rows `indices` (B, M) of x (B, N, d); all rows for `None`."""
    return x if indices is None else x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
