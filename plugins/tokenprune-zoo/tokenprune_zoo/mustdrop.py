"""MustDrop, decoder part: two thresholds on the attention of the text, and patches that must not be dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, geometric, solved_stops

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "mustdrop",
    summary="Sum and maximum of the text's attention at several depths, with the best CLS patches protected",
    source=Source(
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        authors="Liu et al.",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2411.10803",
        code="https://github.com/liuting20/MustDrop",
    ),
    axes=Axes(
        site="entering decoder layers 3, 7, 11, 15 of 32",
        budget="ratio or tokens, or two thresholds",
        magnitude="larger of sum and maximum of the text's attention, each by its threshold; CLS attention (protected)",
        selector="protected set, then top-k",
    ),
    formula="keep the 8 % best of a_cls, then top-k of max(sum_t a_ti / (theta_g sum), max_t a_ti / theta_p)",
    needs=("attention", "encoder_attention"),
    sites=("layer",),
    fidelity=(
        "The decoder part only: merging of 3 x 3 windows inside the vision encoder and the later cut of the caches of "
        "layers already run are left out. Published: a token goes if it is under both thresholds, which are tuned per "
        "data set, so that counts follow from the data; `published=true` does this and does not read the budget. "
        "Otherwise both thresholds are scaled by one factor that meets the budget, which is a top-k of the larger "
        "quotient; the protected go first. Counts fall by a constant share per cut. Scores come from the layer "
        "before the cut (published: after layers 2, 6, 10, 14). Positions are compacted, as published. `relative=true` "
        "scales the published layers to the model's depth; `relative=false` refuses a shallower model."
    ),
)
@dataclass(frozen=True)
class MustDrop(Pruner):
    """Drop what no word attends to, unless the encoder insists on it.

    Args:
        layers: Decoder layers that the cuts enter, of 32.
        relative: Scale `layers` to the model's depth.
        protected_share: Share of the patches that must stay, by CLS attention of the last encoder layer.
        global_threshold: theta_g, share of the attention of all visual tokens.
        individual_threshold: theta_p, attention of a single word.
        published: Drop what is under both thresholds, whatever the budget.
    """

    positions: ClassVar[PositionPolicy] = "compact"

    layers: tuple[int, ...] = (3, 7, 11, 15)
    relative: bool = True
    protected_share: float = 0.08
    global_threshold: float = 0.0012
    individual_threshold: float = 0.001
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.protected_share <= 1.0 or min(self.global_threshold, self.individual_threshold) <= 0.0:
            raise ConfigError(
                "`mustdrop` needs 0 <= protected_share <= 1 and thresholds > 0, got "
                f"{self.protected_share}, {self.global_threshold} and {self.individual_threshold}",
                hint="the published values are 0.08, 0.0012 and 0.001",
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop per layer; with thresholds the counts are not known beforehand."""
        layers = decoder_layers("mustdrop", "layers", self.layers, facts, self.relative)
        sites = [Site("layer", layer) for layer in layers]
        if self.published:
            return tuple(Stop(site, Budget(ratio=1.0)) for site in sites)
        return solved_stops("mustdrop", sites, geometric(tokens, len(sites)), facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k with the protected first, or all over a threshold."""
        score, protected = self.score(view, stop.site.layer), self._protected(view)
        if self.published:
            return Decision(tuple(Kept(row.nonzero().squeeze(-1)) for row in (score >= 1.0) | protected))
        best = score.amax(dim=-1, keepdim=True).clamp_min(1e-30)
        return Decision.keep(dual.top_k(score / best + 2.0 * protected, view.keep))

    def score(self, view: View, layer: int) -> Tensor:
        """The larger of both quotients, (B, N); 1 is the published threshold."""
        import torch

        attention, mask = view.attention("text", layer=layer - 1)
        rows = attention.mean(dim=1) * mask.unsqueeze(-1)
        total, single = rows.sum(dim=1), rows.amax(dim=1)
        share = total / total.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        return torch.maximum(share / self.global_threshold, single / self.individual_threshold)

    def _protected(self, view: View) -> Tensor:
        """Tokens that must stay, (B, N); as none of them ever goes, the best of the rest are the best of all."""
        count = min(view.tokens, math.ceil(self.protected_share * view.original_tokens))
        best = dual.top_k(view.cls_attention(-1).mean(dim=1), max(1, count))[:, :count]
        return dual.member_mask(best, view.tokens)
