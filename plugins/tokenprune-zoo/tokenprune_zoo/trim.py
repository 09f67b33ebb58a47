"""TRIM: patches by their likeness to the question in the joint space, and one mean of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.pruner import Decision, Kept, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "trim",
    summary="Joint image-text score of each patch, top-k plus one mean of all dropped patches",
    source=Source(
        title="Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs",
        authors="Song et al.",
        venue="COLING 2025",
        url="https://arxiv.org/abs/2409.10994",
        code="https://github.com/FreedomIntelligence/TRIM",
    ),
    axes=Axes(
        site="after the vision encoder",
        budget="ratio, tokens, or outliers by interquartile range",
        magnitude="softmax over patches of -(patch . question), joint space",
        merge="one mean of all dropped",
    ),
    formula="top-(K-1) of softmax_i(-E_i . t), in raster order, then mean of the dropped",
    needs=("joint",),
    fidelity=(
        "`negate=true` as published: the similarity of CLIP patches to a text is inverted on the foreground; a joint "
        "space that was trained patch by patch (the shipped model's) wants `negate=false`. The mean row counts in the "
        "budget (theirs: K + 1 rows); it takes the position of the best dropped patch. `adaptive=true` keeps the "
        "scores above Q3 + 1.5 IQR of the one image, whatever the budget (theirs: quartiles over the whole batch); "
        "`published=true` keeps int(N (c / N)) of the c outliers, which binary rounding can make c - 1. Rows stay in "
        "the model's precision (theirs: half). "
        "Positions are compacted, as published."
    ),
    variants=(
        {"negate": False},
        {"adaptive": True},
        {"adaptive": True, "published": True},
    ),
)
@dataclass(frozen=True)
class Trim(OneCut):
    """Keep the patches that the question is about, and a mean of the others.

    Args:
        negate: The score is the *negative* similarity.
        adaptive: Keep the outliers of the score; the budget is not read.
        published: Count the outliers with the published rounding.
    """

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    negate: bool = True
    adaptive: bool = False
    published: bool = False

    def score(self, view: View) -> Tensor:
        """Softmax over the patches, (B, N)."""
        import torch

        likeness = (view.joint_image() @ view.joint_text().unsqueeze(-1)).squeeze(-1)
        return torch.softmax(-likeness if self.negate else likeness, dim=-1)

    @property
    def reads_budget(self) -> bool:
        """Adaptive counts go by no budget."""
        return not self.adaptive

    @property
    def auto(self) -> bool:
        """Adaptive counts follow from the scores."""
        return self.adaptive

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Kept patches in raster order, then the mean row."""
        score = self.score(view)
        if self.adaptive:
            counts = [self._counted(count, view.tokens) for count in dual.outliers(score).tolist()]
            return Decision(tuple(self._unit(score[unit], count) for unit, count in enumerate(counts)))
        return Decision(tuple(self._unit(row, view.keep - 1) for row in score))

    def _counted(self, count: int, tokens: int) -> int:
        return int(tokens * (count / tokens)) if self.published else count

    def _unit(self, score: Tensor, best: int) -> Kept:
        """The `best` patches of one unit (N,) and the mean of the others."""
        import torch

        tokens = score.shape[0]
        ranked = dual.top_k(score.unsqueeze(0), tokens)[0]
        if best >= tokens - 1:  # the mean of one patch is that patch
            return Kept(ranked.sort().values)
        anchors = torch.cat((ranked[:best].sort().values, ranked[best : best + 1]))
        mean = torch.ones(1, tokens, device=score.device).scatter(1, anchors[None, :best], 0.0) / (tokens - best)
        return Kept(
            anchors,
            merge=torch.cat((dual.one_hot(anchors[:best], tokens), mean)),
            labels=("relevant",) * best + ("rest",),
        )
