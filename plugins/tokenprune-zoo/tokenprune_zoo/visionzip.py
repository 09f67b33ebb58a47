"""VisionZip: dominant tokens by CLS attention, the rest merged into a few contextual ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "visionzip",
    summary="Dominant patches by CLS attention, the rest merged into evenly spread targets by key cosine",
    source=Source(
        title="VisionZip: Longer is Better but Not Necessary in Vision Language Models",
        authors="Yang et al.",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2412.04467",
        code="https://github.com/dvlab-research/VisionZip",
    ),
    axes=Axes(
        site="after the vision encoder",
        magnitude="CLS attention, summed over heads",
        duplication="cosine of head-mean encoder keys (merge only)",
        selector="top-k and stride targets",
        merge="mean into the most similar target",
    ),
    formula="top-(K-C) of sum_heads a_cls,i; every floor(rest/C)-th other token is a target, the rest merge into them",
    needs=("encoder_attention",),
    fidelity=(
        "The CLS row is not emitted: the language model never saw one in training, so the whole budget is patches. A "
        "contextual row is the mean of target and assigned tokens. `published=true`: the CLS row counts in the "
        "dominant budget (one patch fewer; the row itself cannot be emitted, so K-1 rows come out) and a contextual "
        "row is target plus mean, weights summing to 2. Encoders without CLS: received attention, as "
        "published. Positions are compacted, as published. Default share of contextual rows: 10 of 64, as published."
    ),
    variants=(
        {"contextual_share": 0.0},
        {"contextual_share": 0.9},
        {"contextual": 3},
    ),
)
@dataclass(frozen=True)
class VisionZip(OneCut):
    """Keep the patches that CLS attends to, and a coarse summary of the rest.

    Args:
        contextual_share: Share of the budget that goes to contextual rows, in [0, 1).
        contextual: Number of contextual rows; 0 takes it from the share.
        published: Reproduce the published counts and merge weights (see the fidelity note).
    """

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    contextual_share: float = 10 / 64
    contextual: int = 0
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.contextual_share < 1.0 or self.contextual < 0:
            raise ConfigError(
                f"`visionzip` needs 0 <= contextual_share < 1 and contextual >= 0, got {self.contextual_share} and "
                f"{self.contextual}",
                hint="the published share is 10 of 64",
            )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Dominant patches in raster order, then contextual rows in the raster order of their targets."""
        if view.keep == view.tokens and not self.published:
            return Decision.keep(view.indices().new_tensor(range(view.tokens)).expand(view.units, -1))
        contextual = self.contextual or math.floor(self.contextual_share * view.keep + 0.5)
        contextual = min(contextual, view.keep - 1)
        dominant_count = max(1, view.keep - contextual - (1 if self.published else 0))
        dominant = dual.top_k(self._score(view), dominant_count).sort(dim=-1).values
        if contextual == 0:
            return Decision.keep(dominant)
        rest = _without(dominant, view.tokens)
        targets = rest.gather(-1, dual.stride_targets(_places(rest), contextual))
        metric = dual.cosine_duplication(view.encoder_keys().mean(dim=1), signed=True)
        assignment = dual.assign(metric, targets).scatter(-1, dominant, -1)
        merged = dual.mean_map(assignment, targets, double=self.published)
        own = _one_hot(dominant, view.tokens)
        labels = ("dominant",) * dominant_count + ("contextual",) * contextual
        return Decision(
            tuple(
                Kept(_cat(dominant[unit], targets[unit]), merge=_cat(own[unit], merged[unit]), labels=labels)
                for unit in range(view.units)
            )
        )

    def _score(self, view: View) -> Tensor:
        """CLS attention summed over heads, or received attention where there is no CLS, (B, N)."""
        return view.cls_attention().sum(dim=1) if view.facts.has_cls else view.received_attention()


def _without(taken: Tensor, tokens: int) -> Tensor:
    """The other indices of 0..N-1 in ascending order, (B, N - K)."""
    gone = taken.new_zeros(taken.shape[0], tokens).scatter(-1, taken, 1)
    return gone.sort(dim=-1, stable=True).indices[:, : tokens - taken.shape[-1]]


def _places(rest: Tensor) -> Tensor:
    """0..M-1 for each unit, (B, M)."""
    return rest.new_ones(rest.shape).cumsum(dim=-1) - 1


def _one_hot(indices: Tensor, tokens: int) -> Tensor:
    """Rows of the identity, (B, K, N) float32."""
    return indices.new_zeros(*indices.shape, tokens).scatter(-1, indices.unsqueeze(-1), 1).float()


def _cat(first: Tensor, second: Tensor) -> Tensor:
    import torch

    return torch.cat((first, second), dim=0)
