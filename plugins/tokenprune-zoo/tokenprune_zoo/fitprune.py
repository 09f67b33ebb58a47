"""FitPrune: a little less after every decoder layer, by the attention among the tokens times that of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import geometric, solved_stops

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "fitprune",
    summary="After every decoder layer, attention received from the visual tokens times that from the text, top-k",
    source=Source(
        title="Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models",
        authors="Ye et al.",
        venue="AAAI 2025",
        url="https://arxiv.org/abs/2409.10197",
        code="https://github.com/ywh187/FitPrune",
    ),
    axes=Axes(
        site="entering every decoder layer but the first",
        budget="ratio or tokens, a constant share stays after each layer; or a table of deletions",
        magnitude="attention received from visual rows times from text rows, largest head, layer K-1",
    ),
    formula="after each layer, top-k of (sum_{q visual} max_h a_qi) (sum_{q text} max_h a_qi) of that layer",
    needs=("attention",),
    sites=("layer",),
    fidelity=(
        "Approximate: the published cut lies between attention and MLP of a layer, here it follows the MLP, so that "
        "each MLP runs at the size before. The same picks at a given count. Published counts come from a table that "
        "is calibrated offline; the calibration is not part of this: `table` takes such a table (deletions after "
        "layers 0, 1, 2, ...; the budget is not read), otherwise a constant share stays after each layer, solved from "
        "the budget. Original positions are kept, as published."
    ),
)
@dataclass(frozen=True)
class FitPrune(Pruner):
    """Drop after every layer what neither the picture nor the text attends to.

    Args:
        table: Tokens to delete after each layer from the first on; empty solves the counts from the budget.
    """

    table: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(count < 0 for count in self.table):
            raise ConfigError(f"option `table` of `fitprune` holds counts >= 0, got {self.table}")

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop after each layer that drops something, the last layer aside."""
        sites = [Site("layer", layer) for layer in range(1, facts.num_layers)]
        if not self.table:
            if not sites:
                raise IncompatibleError("`fitprune` cuts between decoder layers, but the model has only one")
            return solved_stops("fitprune", sites, geometric(tokens, len(sites)), facts, budget, tokens)
        if len(self.table) > facts.num_layers:
            raise IncompatibleError(
                f"option `table` of `fitprune` is for {len(self.table)} layers, but the model has {facts.num_layers}",
                hint="give one count per decoder layer, or leave it empty to solve the counts from the budget",
            )
        stops, left = [], tokens
        for site, gone in zip(sites, self.table, strict=False):  # what follows the last layer changes nothing
            left = max(1, left - gone)
            if gone:
                stops.append(Stop(site, Budget(tokens=left)))
        return tuple(stops)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k of the product."""
        return Decision.keep(dual.top_k(self.score(view, stop.site.layer), view.keep))

    def score(self, view: View, layer: int) -> Tensor:
        """Self mass times cross mass, (B, N)."""
        among, _ = view.attention("visual", layer=layer - 1)
        said, mask = view.attention("text", layer=layer - 1)
        cross = said.amax(dim=1) * mask.unsqueeze(-1)
        return among.amax(dim=1).mean(dim=1) * cross.sum(dim=1)
