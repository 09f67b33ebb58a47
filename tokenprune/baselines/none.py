"""No pruning: the control of every table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenprune.budget import Budget
from tokenprune.pruner import Decision, ModelFacts, Pruner, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


@pruner(
    "none",
    summary="no pruning: the control of every table",
    source=Source("the model as it is"),
    axes=Axes(site="none", budget="all", selector="all"),
    formula="S = {1..N}",
    baseline=True,
)
@dataclass(frozen=True)
class NoPruning(Pruner):
    """Keep every visual token."""

    @property
    def reads_budget(self) -> bool:
        """`False`, because all tokens stay."""
        return False

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """No stop."""
        return ()

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Keep all tokens; never called, because there is no stop."""
        import torch

        everything = torch.arange(view.tokens, device=view.indices().device)
        return Decision.keep(everything.expand(view.units, -1))
