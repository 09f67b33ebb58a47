"""Random choice, drawn from the content of the image and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune.pruner import ScoredPruner, SiteKind, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "random",
    summary="uniform choice without replacement, drawn from the image's content and the seed",
    source=Source("baseline"),
    axes=Axes(site="input", selector="sample"),
    formula="S ~ uniform over subsets of size K",
    needs=("fingerprint",),
    fidelity="the draw depends on seed, pixels and prompt, never on the place in the batch; report several seeds",
    baseline=True,
)
@dataclass(frozen=True)
class RandomPruning(ScoredPruner):
    """Keep K tokens drawn at random.

    Args:
        seed: Seed of the draw.
    """

    site: ClassVar[SiteKind] = "input"
    seed: int = 0

    def score(self, view: View) -> Tensor:
        """Uniform random numbers, from a separate generator for each unit."""
        from tokenprune.composition.selectors import drawn

        return drawn(view, self.seed)
