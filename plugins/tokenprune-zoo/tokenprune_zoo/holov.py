"""HoloV: a quota for every stretch of the picture, so that no part of it is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor

#: Published factor that lifts attention to the scale of the variances.
_LIFT = 1e3
_GUARD = 1e-6


@pruner(
    "holov",
    summary="Quotas for contiguous chunks by attention and variety, top-k of CLS attention inside",
    source=Source(
        title="Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
        authors="Zou et al.",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2510.02912",
        code="https://github.com/obananas/HoloV",
    ),
    axes=Axes(
        site="LLM input",
        groups="contiguous chunks of the raster",
        magnitude="CLS attention, mean over heads",
        duplication="variance of cosines inside a chunk (quota only)",
        selector="quota, then top-k",
    ),
    formula="quota_c ~ mean_c (a_i + alpha var_i mean(a) / mean(var)), top-quota of a_i in each chunk",
    needs=("projected", "encoder_attention"),
    fidelity=(
        "Published: the variance is scaled to the attention within each chunk, where it cancels out (chunk score = "
        "(1 + alpha) mean attention), and a quota above the size of its chunk is lost, zero rows stand in for it. "
        "Here the variance is scaled over the image and what a full chunk cannot take goes to the others. "
        "`published=true` reproduces the original but for its zero rows, which are left out, and emits chunk by chunk "
        "by falling attention. Positions are compacted, as published."
    ),
    variants=(
        {"num_chunks": 1},
        {"num_chunks": 7},
        {"num_chunks": 100},
        {"alpha": 1.0},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class HoloV(OneCut):
    """Keep the best tokens of every chunk.

    Args:
        num_chunks: P, chunks of the raster order.
        alpha: Weight of the variety of a chunk.
        published: Reproduce the published quotas and order (see the fidelity note).
    """

    site: ClassVar[SiteKind] = "input"
    positions: ClassVar[PositionPolicy] = "compact"

    num_chunks: int = 16
    alpha: float = 0.09
    published: bool = False

    def __post_init__(self) -> None:
        if self.num_chunks < 1 or self.alpha < 0.0:
            raise ConfigError(
                f"`holov` needs num_chunks >= 1 and alpha >= 0, got {self.num_chunks} and {self.alpha}",
                hint="the published values are 16 and 0.09",
            )

    @property
    def auto(self) -> bool:
        """A published quota may be larger than its chunk, and what is over is lost."""
        return self.published

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Quotas, then the best of each chunk."""
        attention = view.cls_attention().mean(dim=1)
        chunks, sizes = self._chunks(view.tokens, attention)
        room = sizes.new_full(sizes.shape, view.tokens) if self.published else sizes
        quota = dual.split_budget(self.chunk_score(view), view.keep, room)
        rank = dual.rank_in_group(attention, chunks)
        chosen = rank < quota[:, chunks]
        if not self.published:
            return Decision.keep(chosen.sort(dim=-1, descending=True, stable=True).indices[:, : view.keep])
        whole = quota[:, chunks] >= sizes[chunks]
        places = rank.where(~whole, rank.new_ones(rank.shape).cumsum(dim=-1) - 1)
        order = (chunks * view.tokens + places).masked_fill(~chosen, view.tokens**2).sort(dim=-1, stable=True).indices
        return Decision(tuple(Kept(row[:count]) for row, count in zip(order, chosen.sum(dim=-1).tolist(), strict=True)))

    def chunk_score(self, view: View) -> Tensor:
        """Weight of each chunk, (B, P)."""
        attention = view.cls_attention().mean(dim=1) * _LIFT
        chunks, sizes = self._chunks(view.tokens, attention)
        member = dual.one_hot(chunks, sizes.shape[0])  # (N, P)
        variance = self._variance(view.projected(), chunks, sizes[chunks].float())
        mean_attention, mean_variance = (attention @ member) / sizes, (variance @ member) / sizes
        if self.published:
            scale = (mean_attention / (mean_variance + _GUARD))[:, chunks]
        else:
            scale = attention.mean(dim=-1, keepdim=True) / (variance.mean(dim=-1, keepdim=True) + _GUARD)
        score = attention + self.alpha * variance * scale
        if self.published:  # a chunk of one token is scored before the lift
            score = score.where(sizes[chunks] > 1, attention / _LIFT)
        return (score @ member) / sizes

    def _chunks(self, tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Chunk of each token (N,) and sizes (P,); the first N mod P chunks have one token more."""
        import torch

        count = min(self.num_chunks, tokens)
        sizes = torch.full((count,), tokens // count, device=like.device)
        sizes[: tokens % count] += 1
        return torch.arange(count, device=like.device).repeat_interleave(sizes), sizes

    @staticmethod
    def _variance(features: Tensor, chunks: Tensor, size: Tensor) -> Tensor:
        """Variance of each token's cosines within its chunk, the zeroed diagonal counted in, (B, N)."""
        import torch

        length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        directions = features / (length + _GUARD)
        places = torch.arange(len(chunks), device=chunks.device)
        divisor = (size - 1.0).clamp_min(1.0)
        variance = features.new_empty(features.shape[:2])
        for part in dual.tiles(len(chunks), len(chunks)):
            same = chunks[part, None] == chunks
            cosine = directions[:, part] @ directions.transpose(-1, -2) * (same & (places[part, None] != places))
            mean = cosine.sum(dim=-1) / divisor[part]
            variance[:, part] = ((cosine - mean.unsqueeze(-1)).square() * same).sum(dim=-1) / divisor[part]
        return variance
