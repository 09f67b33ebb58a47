"""Keep the visual tokens with the largest embeddings."""

from dataclasses import dataclass

from tokenprune import hookimpl
from tokenprune.pruner import ScoredPruner, pruner
from tokenprune.registry import Axes, Source


@pruner(
    "loudest",
    summary="keep the visual tokens with the largest embeddings",
    source=Source("The guide `Write a pruner` of tokenprune"),
    axes=Axes(site="input", magnitude="norm(x)^power"),
    needs=["projected"],
)
@dataclass(frozen=True)
class Loudest(ScoredPruner):
    power: float = 1.0

    def score(self, view):
        return view.projected().norm(dim=-1) ** self.power


@hookimpl
def register_pruners(register):
    register(Loudest.spec)
