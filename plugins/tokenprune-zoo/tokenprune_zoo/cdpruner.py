"""CDPruner: a determinantal point process conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "cdpruner",
    summary="Determinantal point process on the projected tokens, weighted by their relevance to the question",
    source=Source(
        title="Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        authors="Zhang et al.",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2506.10967",
        code="https://github.com/Theia-4869/CDPruner",
    ),
    axes=Axes(
        site="LLM input",
        magnitude="relevance to the question, joint image-text space",
        duplication="Gram determinant of projected features",
        selector="greedy DPP",
    ),
    formula="greedy argmax det(diag(r) S diag(r)), S = cos of projected features, r = min-max of -cos(patch, question)",
    needs=("projected", "joint"),
    fidelity=(
        "`negate=true` as published: the similarity of CLIP patches to a text is inverted on the foreground; a joint "
        "space that was trained patch by patch (the shipped model's) wants `negate=false`. Relevance is scaled within "
        "each image; `published=true` scales over the whole batch, so that a result depends on its batch-mates. "
        "Residuals are clamped at 0 and a rank below K goes on by relevance (theirs gives NaN). Positions are "
        "compacted, as published."
    ),
    variants=(
        {"negate": False},
        {"theta": 0.5},
    ),
)
@dataclass(frozen=True)
class CDPruner(OneCut):
    """Keep the subset with the largest conditional diversity.

    Args:
        negate: Relevance is the *negative* similarity to the question.
        theta: Balance in [0, 1): 0 uses the relevance as it is, otherwise exp(theta / (2 (1 - theta)) r).
        published: Scale the relevance over the whole batch.
    """

    site: ClassVar[SiteKind] = "input"
    positions: ClassVar[PositionPolicy] = "compact"

    negate: bool = True
    theta: float = 0.0
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.theta < 1.0:
            raise ConfigError(f"option `theta` of `cdpruner` must lie in [0, 1), got {self.theta}", hint="0 is off")

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Greedy MAP of the conditional kernel."""
        similarity = dual.cosine_duplication(view.projected(), signed=True)
        return Decision.keep(dual.dpp_greedy(self.relevance(view), similarity, view.keep))

    def relevance(self, view: View) -> Tensor:
        """Scaled relevance of each token to the question, about 0 to 1, (B, N)."""
        cosine = (dual.l2_normalize(view.joint_image()) @ dual.l2_normalize(view.joint_text()).unsqueeze(-1)).squeeze(
            -1
        )
        wanted = -cosine if self.negate else cosine
        low, high = wanted.amin(dim=-1, keepdim=True), wanted.amax(dim=-1, keepdim=True)
        if self.published:
            low, high = low.amin(), high.amax()
        spread = high - low
        scaled = (wanted - low + 1e-6) / spread.clamp_min(1e-6)  # all equal: all 1
        return scaled if self.theta == 0.0 else (self.theta / (2.0 * (1.0 - self.theta)) * scaled).exp()
