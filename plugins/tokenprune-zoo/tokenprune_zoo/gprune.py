"""G-Prune: importance that spreads along a graph of similar tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import ScoredPruner, SiteKind, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "gprune",
    summary="Norms of the projected tokens, propagated over their similarity graph and divided by the degree, top-k",
    source=Source(
        title="What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning from the Perspective of Graph",
        authors="Jiang et al.",
        venue="AAAI 2025",
        url="https://arxiv.org/abs/2501.02268",
        code="https://github.com/jytmelon/G-Prune",
    ),
    axes=Axes(
        site="LLM input",
        magnitude="norm, propagated over the graph of duplicates",
        duplication="cosine of projected features (inside the magnitude)",
    ),
    formula="top-k of (||z||^T P^steps)_i / degree_i, P = row softmax of cos_ij / tau over cos_ij >= threshold",
    needs=("projected",),
    fidelity=(
        "The same picks in float32 (in half precision the published softmax underflows on weak edges, which lowers "
        "their degrees). Base view and tiles are images of their own, with a budget each, as published; row separators "
        "are no visual tokens here and always stay. Original positions are kept, as published. A zero token, whose "
        "cosines are undefined, has an edge to itself only."
    ),
    variants=(
        {"threshold": 0.9},
        {"temperature": 1.0},
        {"steps": 0},
    ),
)
@dataclass(frozen=True)
class GPrune(ScoredPruner):
    """Keep the tokens to which the importance of their likes flows.

    Args:
        threshold: Smallest cosine of an edge, in (0, 1).
        temperature: tau of the transition softmax.
        steps: Steps of the walk.
    """

    site: ClassVar[SiteKind] = "input"

    threshold: float = 0.5
    temperature: float = 0.03
    steps: int = 5

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0 or self.temperature <= 0.0 or self.steps < 0:
            raise ConfigError(
                "`gprune` needs 0 < threshold < 1, temperature > 0 and steps >= 0, got "
                f"{self.threshold}, {self.temperature} and {self.steps}",
                hint="the published values are 0.5, 0.03 and 5",
            )

    def score(self, view: View) -> Tensor:
        """Propagated norm by degree, (B, N)."""
        features = view.projected()
        similarity = dual.cosine_duplication(features, signed=True)
        walked, degree = dual.propagated(
            features.norm(dim=-1),
            similarity,
            threshold=self.threshold,
            temperature=self.temperature,
            steps=self.steps,
        )
        return walked / degree
