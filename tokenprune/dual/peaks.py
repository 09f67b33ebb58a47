"""Density peaks: centres are tokens that are dense and far from anything denser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenprune.dual.select import top_k
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
    # no matrix product inside: the distance of i to j must be that of j to i to the last bit, or ties go astray
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / math.sqrt(features.shape[-1])
    nearest = distance.topk(neighbours, dim=-1, largest=False).values
    density = (-nearest.double().square().mean(dim=-1)).exp()  # float64: noise of 1e-6 must not round away
    if noise is not None:
        density = density + noise
    places = torch.arange(tokens, device=features.device)
    denser = (density.unsqueeze(1) > density.unsqueeze(2)) | (
        (density.unsqueeze(1) == density.unsqueeze(2)) & (places < places.unsqueeze(-1))
    )
    farthest = distance.flatten(1).amax(dim=-1)[:, None, None]
    gap = torch.where(denser, distance, farthest).amin(dim=-1)
    centres = top_k(density * gap.double(), clusters)
    to_centres = distance.gather(1, centres.unsqueeze(-1).expand(-1, -1, tokens))
    slots = torch.arange(clusters, device=features.device)
    best = to_centres.amin(dim=1, keepdim=True)
    assignment = torch.where(to_centres == best, slots.unsqueeze(-1), clusters - 1).amin(dim=1)
    return centres, assignment.scatter(-1, centres, slots.expand_as(centres))
