"""SCOPE: saliency times the coverage that a token adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


@pruner(
    "scope",
    summary="Greedy by CLS attention times the coverage of all patches that a patch adds",
    source=Source(
        title="SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs",
        authors="Deng et al.",
        venue="NeurIPS 2025",
        code="https://github.com/kinredon/SCOPE",
    ),
    axes=Axes(
        site="after the vision encoder",
        magnitude="CLS attention, summed over heads, to the power alpha",
        duplication="coverage by cosine of encoder features",
        selector="greedy weighted gain",
    ),
    formula="argmax_i a_i^alpha sum_j max(0, cos_ij - c_j), c_j = max over the picks of cos_j, from 0",
    needs=("encoder", "encoder_attention"),
    fidelity=(
        "The same picks. Picked tokens are masked (theirs rely on their gain of 0, so that a pick can repeat when all "
        "gains are 0). The weight stands at the candidate, as published, so that the greedy bound of coverage does not "
        "hold. `combine: add` is the published variant that adds weight and gain. Positions are compacted, as "
        "published."
    ),
    variants=(
        {"alpha": 0.0},
        {"alpha": 2.0},
        {"combine": "add"},
    ),
)
@dataclass(frozen=True)
class Scope(OneCut):
    """Keep salient patches that stand for many others.

    Args:
        alpha: Power of the saliency; 0 is pure coverage.
        combine: `multiply` or `add` saliency and gain.
    """

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    alpha: float = 1.0
    combine: Literal["multiply", "add"] = "multiply"

    def __post_init__(self) -> None:
        if self.alpha < 0.0 or self.combine not in ("multiply", "add"):
            raise ConfigError(
                f"`scope` needs alpha >= 0 and combine `multiply` or `add`, got {self.alpha} and {self.combine!r}",
                hint="the published values are 1 and `multiply`",
            )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Greedy weighted gain."""
        saliency = view.cls_attention().sum(dim=1).pow(self.alpha)
        similarity = dual.cosine_duplication(view.encoder_features(), signed=True)
        return Decision.keep(dual.weighted_gain(saliency, similarity, view.keep, combine=self.combine))
