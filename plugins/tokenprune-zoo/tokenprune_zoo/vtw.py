"""VTW: every visual token leaves at one decoder layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers


@pruner(
    "vtw",
    summary="All visual tokens are withdrawn at one decoder layer; the budget says which",
    source=Source(
        title="Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
        authors="Lin et al.",
        venue="AAAI 2025",
        url="https://arxiv.org/abs/2405.05803",
        code="https://github.com/lzhxmu/VTW",
    ),
    axes=Axes(
        site="entering decoder layer K",
        budget="layer average: K = L x ratio",
        magnitude="0",
        selector="drop all",
    ),
    formula="S = {} from decoder layer K on",
    sites=("layer",),
    fidelity=(
        "Nothing is kept, so a budget is always read as the mean over the layers (account `average`): K = floor(L x "
        "ratio + 1/2), in steps of 1/L; under half a step it is refused. `layer` sets K itself (published: 15 of 32, "
        "found on a few samples as the first layer where the withdrawal does not change the answers; that search is "
        "not part of this) and then the budget is not read. Original positions are kept, as published."
    ),
)
@dataclass(frozen=True)
class VTW(Pruner):
    """Withdraw every visual token.

    Args:
        layer: K of a 32-layer model; 0 solves it from the budget.
        relative: Scale `layer` to the model's depth.
    """

    layer: int = 0
    relative: bool = True

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop that drops everything."""
        if self.layer:
            layer = decoder_layers("vtw", "layer", (self.layer,), facts, self.relative)[0]
            return (Stop(Site("layer", layer), Budget(tokens=1), drop_all=True),)
        ratio = budget.ratio if budget.ratio is not None else min(1.0, (budget.tokens or 0) / tokens)
        layer = math.floor(ratio * facts.num_layers + 0.5)
        if layer < 1:
            raise BudgetError(
                f"`vtw` cannot average {ratio:.1%} of {tokens} tokens over {facts.num_layers} layers: its floor is "
                f"{tokens / facts.num_layers:.1f} ({1 / facts.num_layers:.1%}), all tokens in the first layer only",
                hint="raise the budget",
            )
        return () if layer >= facts.num_layers else (Stop(Site("layer", layer), Budget(tokens=1), drop_all=True),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """No row of any unit."""
        empty = view.indices()[:, :0]
        return Decision(tuple(Kept(row) for row in empty))
