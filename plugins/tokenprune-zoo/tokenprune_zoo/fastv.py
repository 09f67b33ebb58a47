"""FastV: keep what the last prompt token attends to in an early layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune.errors import ConfigError
from tokenprune.pruner import ScoredPruner, SiteKind, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "fastv",
    summary="Attention of the last prompt token in an early decoder layer, top-k",
    source=Source(
        title="An Image is Worth 1/2 Tokens After Layer 2",
        authors="Chen et al.",
        venue="ECCV 2024",
        url="https://arxiv.org/abs/2403.06764",
        code="https://github.com/pkunlp-icler/FastV",
    ),
    axes=Axes(site="entering decoder layer K", magnitude="a of the last prompt token, layer K-1"),
    formula="top-k of mean_heads softmax(q_last k_i / sqrt d) in layer K-1",
    needs=("attention",),
    fidelity=(
        "Static pruning at prefill with original position ids (the Hugging Face port); the published variant that "
        "re-selects at every decoded token is not reproduced. Attention is recomputed for one row, over the whole "
        "causal row. The number kept follows the one rounding rule of tokenprune (theirs rounds halves to even)."
    ),
    variants=({"layer": 1},),
)
@dataclass(frozen=True)
class FastV(ScoredPruner):
    """Keep the visual tokens that the last prompt token attends to most.

    Args:
        layer: K, layers that run with all tokens; the score comes from layer K-1.
    """

    site: ClassVar[SiteKind] = "layer"

    layer: int = 2

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ConfigError(
                f"option `layer` of `fastv` must be at least 1, got {self.layer}", hint="its score is from layer K-1"
            )

    def score(self, view: View) -> Tensor:
        """Head mean of the last row's attention, (B, N)."""
        attention, _ = view.attention("last", layer=self.layer - 1)
        return attention.mean(dim=1).squeeze(1)
