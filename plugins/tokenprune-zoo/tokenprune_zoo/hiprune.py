"""HiPrune: anchors of a middle encoder layer with their neighbours, and registers of a deep one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import PositionPolicy, ScoredPruner, SiteKind, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import encoder_layer

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "hiprune",
    summary="Received attention: anchors of a middle encoder layer, their neighbours, registers of a deep layer",
    source=Source(
        title="HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
        authors="Liu et al.",
        venue="arXiv 2025",
        url="https://arxiv.org/abs/2508.00553",
        code="https://github.com/Danielement321/HiPrune",
    ),
    axes=Axes(
        site="after the vision encoder",
        magnitude="attention received from all patches, at two depths",
        duplication="none (neighbours are added)",
        selector="top-k anchors, their neighbours, top-k registers",
    ),
    formula="round(alpha K / 5) best rec(object layer), their 4 neighbours, then the best rec(deep layer) up to K",
    needs=("encoder_attention", "geometry"),
    fidelity=(
        "A neighbour beyond the edge of the picture does not exist. `published=true`: indices are clamped to 0..N-1, "
        "so that token 0 stands in above and token N-1 below, left and right wrap across rows, and the number of "
        "anchors rounds halves to even. The object layer is index 8 of 24; `relative=true` scales it to the depth of "
        "the encoder. The budget holds for each image (theirs divides one budget by the crops). Positions are "
        "compacted, as published for LLaVA."
    ),
    variants=(
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": 1.0, "published": True},
        {"object_layer": 2, "relative": False},
        {"deep_layer": 3},
    ),
)
@dataclass(frozen=True)
class HiPrune(ScoredPruner):
    """Keep objects with their surroundings, and what the deep layers look at.

    Args:
        alpha: Share of the budget for anchors and their neighbours, in [0, 1].
        object_layer: Encoder layer of the anchors, 0-based, of 24.
        deep_layer: Encoder layer of the registers, 0-based and not scaled; -1 is the one whose output the projector
            reads.
        relative: Scale `object_layer` to the encoder's depth.
        published: Reproduce the published edges and rounding.
    """

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    alpha: float = 0.1
    object_layer: int = 8
    deep_layer: int = -1
    relative: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0 or self.object_layer < 0:
            raise ConfigError(
                f"`hiprune` needs 0 <= alpha <= 1 and object_layer >= 0, got {self.alpha} and {self.object_layer}",
                hint="the published values are 0.1 and 8",
            )

    def score(self, view: View) -> Tensor:
        """Anchors above neighbours above registers, (B, N); received attention itself lies in [0, 1]."""
        middle = view.received_attention(encoder_layer(self.object_layer, view.facts, self.relative))
        deep = view.received_attention(None if self.deep_layer < 0 else self.deep_layer)
        share = view.keep * self.alpha / 5
        anchors = min(view.tokens, round(share) if self.published else math.floor(share + 0.5))
        if anchors == 0:
            return deep
        best = dual.top_k(middle, anchors)
        around = dual.member_mask(self.neighbours(best, view.grid()), view.tokens)
        return deep + 2.0 * around + 2.0 * dual.member_mask(best, view.tokens)

    def neighbours(self, anchors: Tensor, grid: tuple[int, int]) -> Tensor:
        """The anchors (B, A) and the tokens left, right, above and below of them, (B, 5 A)."""
        import torch

        rows, columns = grid
        steps = torch.tensor([[0, 0], [0, -1], [0, 1], [-1, 0], [1, 0]], device=anchors.device)
        if self.published:
            moved = anchors.unsqueeze(-1) + steps[:, 0] * columns + steps[:, 1]
            return moved.clamp(0, rows * columns - 1).flatten(1)
        row, column = anchors // columns, anchors % columns
        row, column = row.unsqueeze(-1) + steps[:, 0], column.unsqueeze(-1) + steps[:, 1]
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return torch.where(inside, row * columns + column, anchors.unsqueeze(-1)).flatten(1)
