"""A pruner that asks its view a question, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.engine.pruners import sites_of
from tokenprune.budget import Budget
from tokenprune.engine import pruned
from tokenprune.pruner import NEEDS, Decision, ModelFacts, Pruner, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune.site import SITE_KINDS


@pruner(
    "asking",
    summary="asks the view",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=tuple(NEEDS),
    sites=SITE_KINDS,
)
@dataclass(frozen=True)
class Asking(Pruner):
    """Runs a function on every view and keeps the first K."""

    ask: Any = None
    sites: tuple[str, ...] = ("layer:2",)

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        return [Stop(site, budget) for site in sites_of(self.sites)]

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        self.ask(view)
        first = torch.arange(view.keep).expand(view.units, -1)
        return Decision.keep(first)


def ask(model: Any, inputs: Any, question: Callable[[View], Any], site: str = "layer:2") -> Any:
    """The answer of the last view at a site; every image of these batches is in one view."""
    answers = []
    with pruned(model, Asking(lambda view: answers.append(question(view)), (site,)), ratio=0.5, joint=object()):
        model(**inputs)
    return answers[-1]
