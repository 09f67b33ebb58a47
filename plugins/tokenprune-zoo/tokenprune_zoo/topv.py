"""TopV (approximate): tokens by the mass that an optimal transport moves through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, solved_stops

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "topv",
    summary="Approximate: mass of an entropic transport between hidden states in feature and image space, top-k",
    source=Source(
        title="TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal VLMs",
        authors="Yang et al.",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2503.18278",
    ),
    axes=Axes(
        site="decoder layer 2 of 32, between attention and MLP",
        magnitude="mass of an optimal transport",
        duplication="transport cost: features, distance in the image, distance from its centre",
        selector="top-k and stride",
    ),
    formula="top-k of row sums of Sinkhorn(C), C = |f_i - g_j| + 1 - exp(-|p_i - p_j|^2 / 2 sigma^2) + gamma |p_i - c|",
    needs=("hidden", "geometry"),
    sites=("layer",),
    fidelity=(
        "Approximate: there is no published code, and the paper leaves marginals and last update open. Here rows are "
        "weighed by norms, columns evenly, and the last update is that of the columns (after one of the rows the score "
        "would be the marginal alone). Features f and g are what enters the layer and what its MLP would read, as "
        "published, each scaled to length one. The evenly spread recovery of pruned tokens takes a quarter of the "
        "budget. Weights are those of third parties. Original positions are kept. `relative=true` scales the layer to "
        "the model's depth; `relative=false` refuses a shallower model."
    ),
    variants=(
        {"layer": 1, "relative": False},
        {"space_weight": 0.0},
        {"centre_weight": 1.0},
        {"sigma": 1.0},
        {"epsilon": 1.0},
        {"iterations": 1},
        {"recover_share": 0.0},
        {"recover_share": 1.0},
    ),
)
@dataclass(frozen=True)
class TopV(Pruner):
    """Keep the tokens through which most mass flows, and an even sample of the others.

    Args:
        layer: Decoder layer inside which the cut is made, of 32; its attention sees all tokens.
        relative: Scale `layer` to the model's depth.
        space_weight: Weight of the distance in the image.
        centre_weight: Weight of the distance from the image's centre.
        sigma: Reach of the distance in the image, in tokens.
        epsilon: Strength of the entropy.
        iterations: Sinkhorn iterations.
        recover_share: Share of the budget for evenly spread others, in [0, 1].
    """

    layer: int = 2
    relative: bool = True
    space_weight: float = 1.0
    centre_weight: float = 0.01
    sigma: float = 10.0
    epsilon: float = 0.1
    iterations: int = 3
    recover_share: float = 0.25

    def __post_init__(self) -> None:
        if min(self.sigma, self.epsilon) <= 0.0 or self.iterations < 1 or not 0.0 <= self.recover_share <= 1.0:
            raise ConfigError(
                "`topv` needs sigma > 0, epsilon > 0, iterations >= 1 and 0 <= recover_share <= 1, got "
                f"{self.sigma}, {self.epsilon}, {self.iterations} and {self.recover_share}",
                hint="the defaults are 10, 0.1, 3 and 0.25",
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop."""
        layer = decoder_layers("topv", "layer", (self.layer,), facts, self.relative)[0]
        site = Site("layer", layer, "mid")
        return solved_stops("topv", (site,), lambda share: [share * tokens], facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """The best by mass, then every so-manieth of the others in raster order."""
        import torch

        recovered = min(int(view.keep * self.recover_share), view.tokens - 1)
        ranked = dual.top_k(self.score(view), view.tokens)
        best, others = ranked[:, : view.keep - recovered], ranked[:, view.keep - recovered :].sort(dim=-1).values
        places = torch.arange(recovered, device=ranked.device) * others.shape[-1] // max(1, recovered)
        return Decision.keep(torch.cat((best, others[:, places]), dim=-1))

    def score(self, view: View) -> Tensor:
        """Transported mass, (B, N)."""
        import torch

        entered, places = view.layer_input(), view.coordinates()
        before, after = dual.l2_normalize(entered), dual.l2_normalize(view.mlp_input())
        middle = (torch.tensor(view.grid(), device=places.device) - 1) / 2
        outside = self.centre_weight * torch.linalg.vector_norm(places - middle, dim=-1, keepdim=True)

        def cost(part: slice) -> Tensor:
            apart = dual.squared_distance(places[:, part], places)
            moved = dual.squared_distance(before[:, part], after).sqrt()
            far: Tensor = moved + self.space_weight * (1.0 - (-apart / (2.0 * self.sigma**2)).exp()) + outside[:, part]
            return far

        norms = entered.norm(dim=-1)
        return dual.transported_mass(
            norms, torch.ones_like(norms), cost, epsilon=self.epsilon, iterations=self.iterations
        )
