"""FasterVLM: keep the patches that CLS attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune.pruner import PositionPolicy, ScoredPruner, SiteKind, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "fastervlm",
    summary="Attention of the encoder's CLS token, top-k",
    source=Source(
        title="[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
        authors="Zhang et al.",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2412.01818",
        code="https://github.com/Theia-4869/FasterVLM",
    ),
    axes=Axes(site="after the vision encoder", magnitude="CLS attention, mean over heads"),
    formula="top-k of mean_heads a_cls,i in the encoder layer that the projector reads",
    needs=("encoder_attention",),
    fidelity=(
        "The same picks. The mask falls before the projector (theirs: after it), which gives the same rows. The budget "
        "holds for each image or tile, as published. An encoder without CLS is refused. Positions are compacted, as "
        "published."
    ),
)
@dataclass(frozen=True)
class FasterVLM(ScoredPruner):
    """Keep the patches with the largest CLS attention."""

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    def score(self, view: View) -> Tensor:
        """Head mean of the CLS attention, (B, N)."""
        return view.cls_attention().mean(dim=1)
