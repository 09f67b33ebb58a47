"""Density peaks: centres are tokens that are dense and far from anything denser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenprune.dual.selection.select import top_k
from tokenprune.dual.tiling import KEPT, TiledMatrix, tiles
from tokenprune.errors import ConfigError


def density_peaks(
    features: Tensor, clusters: int, *, neighbours: int, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster by density peaks: centres (B, c), best first, and the centre number of each token, (B, M).

    Density is exp(-mean squared distance to the nearest `neighbours` tokens, the token itself among them), distances
    are Euclidean divided by sqrt(D). A centre has a large product of density and distance to the nearest denser
    token (the largest distance of all for the densest). Of equally dense tokens the one with the lower index counts
    as denser, so that the result depends on nothing but the features.

    Args:
        features: (B, M, D).
        clusters: c, 1 <= c <= M.
        neighbours: Tokens in the density estimate, 1 <= neighbours <= M.
        noise: Added to the densities, (B, M), to break ties in another way.

    Raises:
        ConfigError: c or neighbours is out of range.

    Source: Du et al., "Study on density peaks clustering based on k-nearest neighbors", 2016; as used in SparseVLM.
    """
    tokens = features.shape[1]
    if not 1 <= clusters <= tokens or not 1 <= neighbours <= tokens:
        raise ConfigError(f"cannot make {clusters} clusters of {tokens} tokens with {neighbours} neighbours")
    features = features.float()
    distances = TiledMatrix(
        lambda part: _distance(features[:, part], features), (features.shape[0], tokens, tokens), hold=KEPT
    )
    density = distances.over_rows(lambda _, distance: _density(distance, neighbours))
    if noise is not None:
        density = density + noise
    places = torch.arange(tokens, device=features.device)
    farthest = distances.over_rows(lambda _, distance: distance.amax(dim=-1)).amax(dim=-1)[:, None, None]

    def gaps(part: slice, distance: Tensor) -> Tensor:
        own = density[:, part, None]
        denser = (density.unsqueeze(1) > own) | ((density.unsqueeze(1) == own) & (places < places[part, None]))
        return torch.where(denser, distance, farthest).amin(dim=-1)

    centres = top_k(density * distances.over_rows(gaps).double(), clusters)
    slots = torch.arange(clusters, device=features.device)
    middles = features.gather(1, centres.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    nearest = []
    for part in tiles(tokens, clusters):
        to_centres = _distance(features[:, part], middles)
        best = to_centres.amin(dim=-1, keepdim=True)
        nearest.append(torch.where(to_centres == best, slots, clusters - 1).amin(dim=-1))
    return centres, torch.cat(nearest, dim=-1).scatter(-1, centres, slots.expand_as(centres))


def _distance(rows: Tensor, columns: Tensor) -> Tensor:
    """Euclidean distances over sqrt(D), (B, n, M).

    No matrix product inside: the distance of i to j must be that of j to i to the last bit, or ties go astray.
    """
    distance: Tensor = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / math.sqrt(columns.shape[-1])


def _density(distance: Tensor, neighbours: int) -> Tensor:
    """exp(-mean squared distance to the nearest), (B, n) float64: noise of 1e-6 must not round away."""
    nearest = distance.topk(neighbours, dim=-1, largest=False).values
    return (-nearest.double().square().mean(dim=-1)).exp()
