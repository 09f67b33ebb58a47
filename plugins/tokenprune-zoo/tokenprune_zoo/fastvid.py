"""FastVID: salient tokens of every frame, and density-peak anchors that take in the rest of their segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.video import DensityNoise, asked_share

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual.video import Span

#: Tokens in the density estimate, the token itself among them.
_NEIGHBOURS = 4


@pruner(
    "fastvid",
    summary="CLS attention in every frame; the rest of a segment merges into density peaks of some of its frames",
    source=Source(
        title="FastVID: Dynamic Density Pruning for Fast Video Large Language Models",
        authors="Shen et al.",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2503.11187",
        code="https://github.com/LunarShen/FastVID",
    ),
    axes=Axes(
        site="LLM input",
        groups="segments of like frames",
        magnitude="CLS attention, mean over heads",
        duplication="Euclidean distance (density peaks), cosine (merge)",
        selector="quota, then top-k and density peaks",
        merge="weighted mean of an anchor and its segment",
    ),
    formula=(
        "per frame the top (1 - d) n of a_cls; in the last, 4th last, ... frame of a segment density peaks of the "
        "others, d n per frame of the segment; row = w z_anchor + (1 - w) mean of its tokens, w = max(beta, 1/(n+1))"
    ),
    needs=("projected", "encoder_attention", "geometry"),
    fidelity=(
        "Published on an encoder with an attention pooling head: its probe's attention is the score and its output "
        "the global feature of a frame. No encoder here has one: CLS attention stands in for the former, received "
        "attention where there is no CLS, and the mean LLM input embedding of a frame for the latter (a caller may "
        "put (B, F, G) features into `state['frame_features']`). As published, every anchor frame merges all tokens of "
        "the segment that are not salient, the anchor counts in its own mean, and original positions are kept. "
        "Published counts are n = int(ratio P) per frame, of which int(d n) are context, and what a segment's context "
        "cannot share out evenly among its anchor frames is lost: `published=true`. Otherwise n is spread evenly "
        "over the frames and nothing is lost: the remainder goes to the anchor frames from the last backwards, and "
        "what they have no room for becomes salient tokens of the segment's other frames. Ties of density go to the "
        "lower index; theirs to random noise, which a caller may put into `state['density_noise']`. An image is a "
        "segment of one frame."
    ),
    variants=(
        {"segments": 1},
        {"segments": 100},
        {"threshold": -2.0},
        {"context_share": 0.0},
        {"context_share": 1.0},
        {"anchor_step": 1},
        {"anchor_weight": 0.0},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class FastVID(OneCut):
    """Keep what is salient, and a digest of every segment.

    Args:
        segments: Least number of segments, as far as there are frames.
        threshold: Similarity of neighbouring frames below which a segment ends.
        context_share: d, share of the budget that goes to merged rows, in [0, 1].
        anchor_step: Every so many frames of a segment one holds anchors.
        anchor_weight: beta, least weight of an anchor in its row, in [0, 1].
        published: Reproduce the published counts (see the fidelity note).
    """

    site: ClassVar[SiteKind] = "input"

    segments: int = 8
    threshold: float = 0.9
    context_share: float = 0.4
    anchor_step: int = 4
    anchor_weight: float = 0.6
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.context_share <= 1.0 or not 0.0 <= self.anchor_weight <= 1.0:
            raise ConfigError(
                "`fastvid` needs 0 <= context_share <= 1 and 0 <= anchor_weight <= 1, got "
                f"{self.context_share} and {self.anchor_weight}",
                hint="the published values are 0.4 and 0.6",
            )
        if self.segments < 1 or self.anchor_step < 1:
            raise ConfigError(
                f"`fastvid` needs segments >= 1 and anchor_step >= 1, got {self.segments} and {self.anchor_step}",
                hint="the published values are 8 and 4",
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the LLM input."""
        (stop,) = super().plan(facts, budget, tokens)
        return (Stop(stop.site, stop.budget, auto=self.published),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Segments are a matter of each video, so units are condensed one by one."""
        import torch

        frames = view.frames()
        cells = dual.by_frame(view.projected(), frames)
        if not self.published and view.keep == view.tokens:
            return Decision.keep(torch.arange(view.tokens, device=cells.device).expand(view.units, -1))
        attention = view.cls_attention().mean(dim=1) if view.facts.has_cls else view.received_attention()
        score = dual.by_frame(attention, frames)
        whole = state.get("frame_features", cells.mean(dim=2))
        similarity = dual.neighbour_cosine(whole).tolist()
        if self.published:
            rows = [int(cells.shape[2] * asked_share(stop, view.tokens))] * frames
        else:
            rows = dual.even_shares(view.keep, frames)
        units = []
        for unit in range(view.units):
            spans = dual.similarity_segments(similarity[unit], self.segments, self.threshold)
            salient, anchors = self.counts(spans, cells.shape[2], rows)
            noise = DensityNoise(state, unit)
            units.append(self.condensed(cells[unit], score[unit], spans, salient, anchors, noise))
        return Decision(tuple(units))

    def counts(self, spans: Sequence[Span], cells: int, rows: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """Salient tokens of each frame, and anchors by anchor frame.

        Args:
            spans: Segments.
            cells: P.
            rows: Rows that each frame adds to the total, at most P each.
        """
        salient = [count - int(self.context_share * count) for count in rows]
        anchors: dict[int, int] = {}
        for first, last in spans:
            holders = list(range(last, first - 1, -self.anchor_step))
            context = sum(rows[first : last + 1]) - sum(salient[first : last + 1])
            if self.published:
                anchors |= {frame: min(context // len(holders), cells - salient[frame]) for frame in holders}
                continue
            room = [cells - salient[frame] for frame in holders]
            given = _even(context, room)
            anchors |= dict(zip(holders, given, strict=True))
            others = [frame for frame in range(first, last + 1) if frame not in anchors]
            extra = _even(context - sum(given), [cells - salient[frame] for frame in others])
            for frame, count in zip(others, extra, strict=True):
                salient[frame] += count
        return salient, anchors

    def condensed(
        self,
        cells: Tensor,
        score: Tensor,
        spans: Sequence[Span],
        salient: Sequence[int],
        anchors: dict[int, int],
        noise: DensityNoise,
    ) -> Kept:
        """The rows of one video in raster order.

        Args:
            cells: (F, P, D).
            score: (F, P).
            spans: Segments.
            salient: Salient tokens of each frame.
            anchors: Anchors by anchor frame.
            noise: For ties of density; every frame takes its numbers, with anchors or without.
        """
        import torch

        frames, count = score.shape
        device = cells.device
        groups = torch.arange(frames, device=device).repeat_interleave(count)
        quotas = torch.tensor([salient], device=device)
        chosen = dual.quota_members(score.reshape(1, -1), groups, quotas)[0]
        order = chosen.sort(stable=True).indices  # the others first, both in raster order
        kept = order[frames * count - sum(salient) :]
        places, merged = [kept], [dual.one_hot(kept[None], frames * count)[0]]
        flat = cells.flatten(0, 1)
        rest = torch.split(order[: frames * count - sum(salient)], [count - number for number in salient])
        for first, last in spans:
            pool = torch.cat(rest[first : last + 1])
            for frame in range(first, last + 1):
                own = rest[frame]
                ties = noise.take(1, own.numel(), flat) if own.numel() else None
                if not anchors.get(frame):
                    continue
                centres, _ = dual.density_peaks(
                    flat[own][None], anchors[frame], neighbours=min(_NEIGHBOURS, own.numel()), noise=ties
                )
                where = own[centres[0]]
                places.append(where)
                merged.append(self._merged(flat, pool, where))
        anchor, merge = torch.cat(places), torch.cat(merged)
        order = anchor.argsort()
        labels = ("salient",) * kept.numel() + ("context",) * (anchor.numel() - kept.numel())
        return Kept(anchor[order], merge=merge[order], labels=tuple(labels[place] for place in order.tolist()))

    def _merged(self, flat: Tensor, pool: Tensor, anchors: Tensor) -> Tensor:
        """Rows of the merge map, (A, N).

        Args:
            flat: (N, D).
            pool: Tokens that merge, (M,), ascending, the anchors among them.
            anchors: (A,).
        """
        import torch

        slot = dual.assign(
            dual.cosine_duplication(flat[pool][None], signed=True), torch.searchsorted(pool, anchors)[None]
        )
        member = torch.zeros(anchors.numel(), flat.shape[0], device=flat.device)
        member[slot[0], pool] = 1.0
        size = member.sum(dim=-1, keepdim=True)
        weight = (1.0 / (size + 1.0)).clamp_min(self.anchor_weight)
        return weight * dual.one_hot(anchors[None], flat.shape[0])[0] + (1.0 - weight) * member / size


def _even(total: int, room: Sequence[int]) -> list[int]:
    """A number shared out evenly, the remainder to the first, none above its room; what has no room is left over."""
    import torch

    if not room:
        return []
    weights = torch.ones(1, len(room))
    shares: list[int] = dual.split_budget(weights, min(total, sum(room)), torch.tensor(room))[0].tolist()
    return shares
