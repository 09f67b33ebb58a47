"""DivPrune: the most diverse subset, by farthest-point selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune import dual
from tokenprune.pruner import Decision, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


@pruner(
    "divprune",
    summary="Max-min cosine distance of the projected tokens (farthest-point selection)",
    source=Source(
        title="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
        authors="Alvar et al.",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2503.02175",
        code="https://github.com/vbdi/divprune",
    ),
    axes=Axes(site="LLM input", duplication="cos of projected features", selector="max-min"),
    formula="first argmax_i min_{j != i} (1 - cos_ij), then argmax_i min_{j in S} (1 - cos_ij)",
    needs=("projected",),
    fidelity=(
        "Chosen tokens are masked (theirs rely on a distance of about 0 to themselves, so a pick can repeat when only "
        "exact copies are left) and cosines are float32 (theirs: model precision). The same picks otherwise. Positions "
        "are compacted, as published."
    ),
)
@dataclass(frozen=True)
class DivPrune(OneCut):
    """Keep the subset whose members are as far from each other as possible."""

    site: ClassVar[SiteKind] = "input"
    positions: ClassVar[PositionPolicy] = "compact"

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Greedy max-min selection."""
        similarity = dual.cosine_duplication(view.projected(), signed=True)
        return Decision.keep(dual.max_min(similarity, view.keep))
