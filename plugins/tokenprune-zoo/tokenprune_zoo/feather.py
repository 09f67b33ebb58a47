"""FEATHER: attention without position bias and a coarse grid first, then attention alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, solved_stops

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "feather",
    summary="Attention of the last prompt token without RoPE, with a grid at the first of two cuts",
    source=Source(
        title="Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model Acceleration",
        authors="Endo et al.",
        venue="ICCV 2025",
        url="https://arxiv.org/abs/2412.13180",
        code="https://github.com/markendo/FEATHER",
    ),
    axes=Axes(
        site="entering decoder layers 8 and 16 of 32",
        budget="ratio or tokens, solved from a share r",
        magnitude="a of the last prompt token without RoPE, softmax over the image, layer K-1",
        duplication="spatial (grid)",
        selector="top-k and grid, then top-k",
    ),
    formula="cut 1: top-(r N) of a and every 3rd row and column; cut 2: top-(r^2 n) of a",
    needs=("attention", "geometry"),
    sites=("layer",),
    fidelity=(
        "The share r is solved from the budget, the first count being grid + r (N - grid): the union with the grid is "
        "filled up by score to exactly that (theirs varies with the overlap). `published=true` takes r from the option "
        "`ratio` (published: 0.3) and unites int(r N) tokens with the grid; the budget is not read. The grid follows "
        "the picture's own rows and columns (theirs: a square). A grid that is larger than the budget is thinned out "
        "by score. Original positions are kept, as published. `relative=true` scales the published layers to the "
        "model's depth; `relative=false` takes them as they are and refuses a shallower model."
    ),
    variants=(
        {"stride": 1},
        {"stride": 50},
        {"layers": (2, 3), "relative": False},
        {"published": True},
        {"published": True, "ratio": 0.9},
    ),
)
@dataclass(frozen=True)
class Feather(Pruner):
    """Keep what the last prompt token attends to wherever it stands, and a grid of witnesses.

    Args:
        layers: The two decoder layers that the cuts enter, of 32; scores come from the layer before.
        stride: Step of the grid in rows and columns.
        relative: Scale `layers` to the model's depth.
        published: Take the counts from `ratio`.
        ratio: r, read with `published` only.
    """

    layers: tuple[int, ...] = (8, 16)
    stride: int = 3
    relative: bool = True
    published: bool = False
    ratio: float = 0.3

    def __post_init__(self) -> None:
        if len(self.layers) != 2 or self.stride < 1 or not 0.0 < self.ratio <= 1.0:
            raise ConfigError(
                "`feather` needs two layers, stride >= 1 and 0 < ratio <= 1, got "
                f"{self.layers}, {self.stride} and {self.ratio}",
                hint="the published values are (8, 16), 3 and 0.3",
            )

    @property
    def reads_budget(self) -> bool:
        """The published counts follow from options and data."""
        return not self.published

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """Two stops with counts that belong to one share r."""
        sites = [Site("layer", layer) for layer in self._layers(facts)]
        if self.published:
            return tuple(Stop(site, Budget(ratio=1.0), auto=True) for site in sites)
        witnesses = tokens / self.stride**2

        def counts(ratio: float) -> list[float]:
            first = witnesses + ratio * (tokens - witnesses)
            return [first, ratio * ratio * first]

        return solved_stops("feather", sites, counts, facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """With the grid at the first cut, by score alone at the second."""
        first = stop.site.layer == self._layers(view.facts)[0]
        score = self.score(view, stop.site.layer)
        if not self.published:
            return Decision.keep(dual.top_k(score + 2.0 * self._grid(view) if first else score, view.keep))
        if not first:
            return Decision.keep(dual.top_k(score, max(1, int(view.tokens * self.ratio * self.ratio))))
        best = dual.member_mask(dual.top_k(score, max(1, int(view.tokens * self.ratio))), view.tokens)
        return Decision(tuple(Kept(row.nonzero().squeeze(-1)) for row in best | self._grid(view)))

    def score(self, view: View, layer: int) -> Tensor:
        """Head mean of the last row over the image's columns, (B, N), at most 1."""
        attention, _ = view.attention("last", rope=False, layer=layer - 1, support="visual")
        return attention.mean(dim=1).squeeze(1)

    def _grid(self, view: View) -> Tensor:
        """Every stride-th token of every stride-th row, (B, N) bool."""
        return (view.coordinates().long() % self.stride == 0).all(dim=-1)

    def _layers(self, facts: ModelFacts) -> tuple[int, ...]:
        return decoder_layers("feather", "layers", self.layers, facts, self.relative)
