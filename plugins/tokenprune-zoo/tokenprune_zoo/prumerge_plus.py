"""LLaVA-PruMerge+: PruMerge with a coarse grid of patches on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.pruner import pruner
from tokenprune.registry import Axes
from tokenprune_zoo.prumerge import SOURCE, PruMerge

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "prumerge-plus",
    summary="A quarter of the budget by CLS attention, the rest evenly spread; neighbours by key merge in",
    source=SOURCE,
    axes=Axes(
        site="after the vision encoder",
        budget="ratio, tokens, or outliers by interquartile range",
        magnitude="CLS attention, all heads as one",
        duplication="cosine of encoder keys (merge only)",
        selector="top-k and stride",
        merge="weighted sum of the nearest by key; one row for the dropped",
    ),
    formula="top-m of a_cls and about 3 m evenly spread patches, then the merge of `prumerge`",
    needs=("encoder_attention",),
    sites=("encoder",),
    fidelity=(
        "Published with an adaptive count only: m outliers and a stride of about N / 3 m, so about 4 m patches; "
        "`adaptive=true` does this. For a budget K, a quarter of K - 1 goes by attention and the rest is spread evenly "
        "over the other patches. `published=true` lets the grid end before the last patch and rounds counts as they "
        "do; a stride of 0 (an error in theirs, for more than N / 3 outliers) is 1. All else as `prumerge`."
    ),
    variants=(
        {"neighbours": 3},
        {"layer": 2},
        {"adaptive": True},
        {"adaptive": True, "published": True},
    ),
)
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """Keep what CLS attends to and a grid; options as `prumerge`."""

    def chosen(self, score: Tensor, count: int) -> Tensor:
        """A quarter by attention, then evenly spread others in raster order, (B, count)."""
        import torch

        tokens = score.shape[-1]
        best = dual.top_k(score, max(1, count // 4))
        left = count - best.shape[-1]
        if left == 0:
            return best
        others = dual.complement(best, tokens)
        places = torch.arange(left, device=score.device) * others.shape[-1] // left
        return torch.cat((best, others[:, places]), dim=-1)

    def adaptive_choice(self, score: Tensor, outliers: int) -> Tensor:
        """Outliers, then the grid whose stride follows from their number."""
        import torch

        tokens, count = score.shape[-1], max(1, outliers)
        best = dual.top_k(score, count)
        stride = max(1, int(int(tokens / count) / 3))
        grid = torch.arange(0, tokens - 1 if self.published else tokens, stride, device=score.device)
        fresh = grid[~dual.member_mask(best, tokens)[0, grid]]
        return torch.cat((best, fresh.unsqueeze(0)), dim=-1)
