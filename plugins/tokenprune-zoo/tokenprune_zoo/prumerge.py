"""LLaVA-PruMerge: patches by CLS attention, each enriched with the patches of similar key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = Source(
    title="LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
    authors="Shang et al.",
    venue="ICCV 2025",
    url="https://arxiv.org/abs/2403.15388",
    code="https://github.com/42Shawn/LLaVA-PruMerge",
)


@pruner(
    "prumerge",
    summary="CLS attention of the last encoder layer, top-k; neighbours by key merge in, one row sums up the rest",
    source=SOURCE,
    axes=Axes(
        site="after the vision encoder",
        budget="ratio, tokens, or outliers by interquartile range",
        magnitude="CLS attention, all heads as one",
        duplication="cosine of encoder keys (merge only)",
        merge="weighted sum of the nearest by key; one row for the dropped",
    ),
    formula="top-(K-1) of a_cls; row_i = x_i + sum_{j: 32 nearest keys} a_j x_j; last row = sum_{dropped} a_j x_j",
    needs=("encoder_attention",),
    fidelity=(
        "All heads count as one wide head, as published; its attention follows from the heads' own (log-probabilities "
        "add up). Merge weights are divided by their sum, the kept patch's own being 1, so that rows stay on the scale "
        "of features; `published=true` leaves them as they are (the last row then shrinks to the dropped attention "
        "mass) and keeps int(N (c / N)) of c outliers. The extra row counts in the budget (theirs: K + 1 rows). "
        "`adaptive=true` keeps the scores above Q3 + 1.5 IQR of the one image, whatever the budget (theirs: over the "
        "batch). Rows come in falling attention, positions are compacted, both as published. The published accuracy "
        "is with fine-tuning."
    ),
    variants=(
        {"neighbours": 0},
        {"neighbours": 1000},
        {"layer": 2},
        {"adaptive": True},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class PruMerge(OneCut):
    """Keep what CLS attends to, with the neighbours merged in.

    Args:
        neighbours: Patches that merge into each kept one.
        layer: Encoder layer of attention and keys; negative counts from the end.
        adaptive: Keep the outliers of the attention; the budget is not read.
        published: Reproduce the published weights and rounding.
    """

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    neighbours: int = 32
    layer: int = -1
    adaptive: bool = False
    published: bool = False

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise ConfigError(
                f"`{self.spec.name}` needs neighbours >= 0, got {self.neighbours}", hint="the published value is 32"
            )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Kept patches by falling attention, then the row of the rest."""
        score = self.score(view)
        if not self.adaptive:
            kept = self.chosen(score, max(1, view.keep - 1) if view.keep < view.tokens else view.tokens)
            return self.merged(view, score, kept, extra=1 < view.keep < view.tokens)
        units = []
        for unit, count in enumerate(dual.outliers(score).tolist()):
            own = self.adaptive_choice(score[unit : unit + 1], self._counted(count, view.tokens))
            everything = own.expand(view.units, -1)  # the merge is batched; this unit's answer counts
            units.append(self.merged(view, score, everything, extra=own.shape[-1] < view.tokens).units[unit])
        return Decision(tuple(units))

    @property
    def reads_budget(self) -> bool:
        """Adaptive counts go by no budget."""
        return not self.adaptive

    @property
    def auto(self) -> bool:
        """Adaptive counts follow from the attention."""
        return self.adaptive

    def chosen(self, score: Tensor, count: int) -> Tensor:
        """The kept patches in the order of emission, (B, count)."""
        return dual.top_k(score, count)

    def adaptive_choice(self, score: Tensor, outliers: int) -> Tensor:
        """The kept patches of one unit (1, N) where the data set the count."""
        return dual.top_k(score, max(1, outliers))

    def score(self, view: View) -> Tensor:
        """CLS attention of one head as wide as all heads, (B, N).

        Its logit is sum_h q_h k_h / sqrt(H d), and sum_h of the heads' log-probabilities is that times sqrt(H), up to
        a constant of the row; the CLS column takes part in the softmax.
        """
        import torch

        heads = view.cls_attention(self.layer)
        itself = (1.0 - heads.sum(dim=-1, keepdim=True)).clamp_min(0.0)
        logs = torch.cat((itself, heads), dim=-1).clamp_min(torch.finfo(torch.float32).tiny).log()
        return torch.softmax(logs.sum(dim=1) / math.sqrt(heads.shape[1]), dim=-1)[:, 1:]

    def merged(self, view: View, score: Tensor, kept: Tensor, *, extra: bool) -> Decision:
        """Rows for the kept patches (B, K) with their neighbours, and one for the rest."""
        import torch

        if kept.shape[-1] == view.tokens:
            return Decision.keep(kept)
        keys = view.encoder_keys(self.layer).transpose(1, 2).flatten(2)
        similarity = dual.cosine_duplication(keys, signed=True).block(kept, _places(kept, view.tokens))
        own = dual.one_hot(kept, view.tokens)
        others = similarity.masked_fill(own.bool(), -torch.inf)
        near = others.argsort(dim=-1, descending=True, stable=True)[..., : min(self.neighbours, view.tokens - 1)]
        rows = own + torch.zeros_like(own).scatter(-1, near, 1.0) * score.unsqueeze(1)
        if extra:
            member = dual.member_mask(kept, view.tokens)
            dropped = score.masked_fill(member, 0.0)
            if not self.published:  # tokens that nothing attends to weigh alike, not nothing
                dropped = torch.where(dropped.sum(dim=-1, keepdim=True) > 0.0, dropped, (~member).float())
            anchor = dual.top_k(score.masked_fill(member, -torch.inf), 1)  # the most attended of the dropped
            rows, kept = torch.cat((rows, dropped.unsqueeze(1)), dim=1), torch.cat((kept, anchor), dim=-1)
        if not self.published:
            rows = rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return Decision(tuple(Kept(anchors, merge=merge) for anchors, merge in zip(kept, rows, strict=True)))

    def _counted(self, count: int, tokens: int) -> int:
        return int(tokens * (count / tokens)) if self.published else count


def _places(like: Tensor, tokens: int) -> Tensor:
    """0..N-1 for each unit, (B, N)."""
    import torch

    return torch.arange(tokens, device=like.device).expand(like.shape[0], -1)
