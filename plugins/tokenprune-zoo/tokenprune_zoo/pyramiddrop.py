"""PyramidDrop: the last prompt token prunes again and again, a share of what is left each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.pruner import Decision, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, geometric, solved_stops


@pruner(
    "pyramiddrop",
    summary="Attention of the last prompt token at several depths, top-k each time",
    source=Source(
        title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        authors="Xing et al.",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2410.17247",
        code="https://github.com/Cooperx521/PyramidDrop",
    ),
    axes=Axes(
        site="entering decoder layers 8, 16, 24 of 32",
        budget="ratio or tokens, a constant share stays at each cut",
        magnitude="a of the last prompt token, in the layer that is entered",
    ),
    formula="at each cut, top-(N r^s) of mean_heads softmax(q_last k_i / sqrt d) in the layer that is entered",
    needs=("attention",),
    sites=("layer",),
    fidelity=(
        "One share r for all cuts (published: 1/2), solved from the budget; with T = N / 8 the counts are the "
        "published ones (a half, a quarter, an eighth of N). Counts round halves up (theirs: down). Positions are "
        "compacted after every cut, as published, so later cuts see the new ones. `relative=true` scales the published "
        "layers to the model's depth; `relative=false` takes them as they are and refuses a shallower model."
    ),
    variants=(
        {"layers": (4,)},
        {"layers": (2, 3), "relative": False},
    ),
)
@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Keep what the last prompt token attends to, less and less of it.

    Args:
        layers: Decoder layers that the cuts enter, of 32.
        relative: Scale `layers` to the model's depth.
    """

    positions: ClassVar[PositionPolicy] = "compact"

    layers: tuple[int, ...] = (8, 16, 24)
    relative: bool = True

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop per layer, counts N r, N r^2, ..."""
        layers = decoder_layers("pyramiddrop", "layers", self.layers, facts, self.relative)
        sites = [Site("layer", layer) for layer in layers]
        return solved_stops("pyramiddrop", sites, geometric(tokens, len(sites)), facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k of the head mean of the last row."""
        attention, _ = view.attention("last")
        return Decision.keep(dual.top_k(attention.mean(dim=1).squeeze(1), view.keep))
