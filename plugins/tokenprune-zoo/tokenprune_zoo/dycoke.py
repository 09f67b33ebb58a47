"""DyCoke: drop what other frames already show, then at every decoding step read a part of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers

if TYPE_CHECKING:
    from torch import Tensor

#: Frames of a group; its first one is the reference.
_GROUP = 4
#: Above any cosine.
_WHOLE = 2.0


@pruner(
    "dycoke",
    summary="Cells unlike the same cell of a reference frame; while decoding, a changing view of the KV cache",
    source=Source(
        title="DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
        authors="Tao et al.",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2411.15024",
        code="https://github.com/KD-TAO/DyCoke",
    ),
    axes=Axes(
        site="LLM input, then every decoding step from decoder layer 3 of 32",
        budget="ratio or tokens, shared out among frames; the view is a further share of it",
        groups="frame, four frames with one reference",
        magnitude="a of the token being decoded, layer K-1 (view)",
        duplication="cosine with the same cell of another frame",
        selector="quota, then bottom-k; top-k (view)",
    ),
    formula=(
        "of four frames compare 1 with 0, 3 with 2, 2 with 0 and keep the least similar cells; at a step whose "
        "attention has cosine < 0.9 with the last step's read the top (1 - p) of mean_heads a only"
    ),
    needs=("projected", "geometry", "attention"),
    sites=("input", "decode"),
    fidelity=(
        "Nothing is merged, as published. Published: reference frames stay whole, the others keep int((1 - k) P) "
        "cells in order of increasing similarity, the last frame of an odd number is lost (a single one is not) "
        "and the last group of four skips its third frame, whatever the budget: `published=true`. Otherwise a "
        "reference frame gets 1 and another frame 1 - k shares of the budget, what a full frame cannot take goes "
        "to the others; a reference frame that cannot stay whole keeps what is least like the reference before it, "
        "the first one evenly spread cells. The view at decoding steps keeps 1 - p of what the prefill kept; it "
        "frees no memory, dropped tokens come back, and it does not count in the prefill's budget or accounts. A "
        "step that is like the last one reads the whole cache, as published. A budget that keeps every token "
        "leaves decoding alone as well. `published=true` never drops the last visual token from a view. Positions "
        "are compacted, as published. `relative=true` scales the layer to the model's depth; `relative=false` "
        "refuses a shallower model."
    ),
    variants=(
        {"merging_ratio": 0.0},
        {"merging_ratio": 1.0},
        {"decode_rate": 0.0},
        {"similarity": 2.0, "decode_rate": 0.9},
        {"layer": 2, "relative": False},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class DyCoke(Pruner):
    """Drop what is still on the screen, read what the next word needs.

    Args:
        merging_ratio: k, share of a frame that goes for being like its reference frame, in [0, 1].
        layer: First decoder layer that reads a view, of 32; attention comes from the layer before.
        decode_rate: p, share of the visual tokens outside a view; 0 makes no views.
        similarity: Cosine of two steps' attention from which on a step reads everything.
        relative: Scale `layer` to the model's depth.
        published: Reproduce the published counts and order (see the fidelity note).
    """

    positions: ClassVar[PositionPolicy] = "compact"

    merging_ratio: float = 0.7
    layer: int = 3
    decode_rate: float = 0.7
    similarity: float = 0.9
    relative: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.merging_ratio <= 1.0 or not 0.0 <= self.decode_rate < 1.0:
            raise ConfigError(
                "`dycoke` needs 0 <= merging_ratio <= 1 and 0 <= decode_rate < 1, got "
                f"{self.merging_ratio} and {self.decode_rate}",
                hint="the published values are 0.7 and 0.7",
            )

    @property
    def reads_budget(self) -> bool:
        """The published counts follow from options and data."""
        return not self.published

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the LLM input, and one for all decoding steps."""
        layer = decoder_layers("dycoke", "layer", (self.layer,), facts, self.relative)[0]
        decode = Site("decode", layer)
        if self.published:
            everything = Budget(ratio=1.0)
            stops = (Stop(Site("input"), everything, auto=True), Stop(decode, everything, auto=True))
            return stops if self.decode_rate else stops[:1]
        entering = budget.after_cut(0, facts.num_layers, tokens)
        stop = Stop(Site("input"), entering)
        if self.decode_rate == 0.0 or entering.count(tokens) == tokens:
            return (stop,)
        share = 1.0 - self.decode_rate
        if entering.ratio is not None:
            view = Budget(ratio=share * entering.ratio)
        else:
            view = Budget(tokens=max(1, round(share * entering.count(tokens))))
        return stop, Stop(decode, view)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Rows that enter the decoder, or rows that the coming layers read at this step."""
        if stop.site.kind == "decode":
            return self._viewed(view, stop.site.layer, state)
        frames = view.frames()
        cells = dual.by_frame(view.projected(), frames)
        return self._as_published(cells) if self.published else self._within_budget(cells, view.keep)

    def _within_budget(self, cells: Tensor, keep: int) -> Decision:
        """Exactly K cells, by falling dissimilarity in each frame."""
        import torch

        frames, count, device = cells.shape[1], cells.shape[2], cells.device
        reference = [_reference(frame) for frame in range(frames)]
        cosine = dual.cell_cosine(cells, reference)
        weights = [1.0 if frame % _GROUP == 0 else 1.0 - self.merging_ratio for frame in range(frames)]
        room = torch.full((frames,), count, dtype=torch.long, device=device)
        quotas = dual.split_budget(torch.tensor([weights], device=device), keep, room)
        cosine[:, 0, dual.even_places(count, int(quotas[0, 0]))] = -_WHOLE
        groups = torch.arange(frames, device=device).repeat_interleave(count)
        kept = dual.quota_members(-cosine.flatten(1), groups, quotas.expand(cells.shape[0], -1))
        return Decision.keep(kept.nonzero()[:, 1].view(cells.shape[0], keep))

    def _as_published(self, cells: Tensor) -> Decision:
        """Whole frames in raster order, the others by increasing similarity."""
        import torch

        frames, count = cells.shape[1], cells.shape[2]
        reference = {frame: frame - 1 for frame in range(1, frames, 2)}
        reference |= {frame + 2: frame for frame in range(0, frames - _GROUP, _GROUP)}
        cosine = dual.cell_cosine(cells, [reference.get(frame, frame) for frame in range(frames)])
        fewer = int((1 - self.merging_ratio) * count)
        order = cosine.sort(dim=-1, stable=True).indices  # a whole frame is all ties: raster order
        rows = [
            order[:, frame, : fewer if frame in reference else count] + frame * count
            for frame in range(frames if frames == 1 else frames - frames % 2)
        ]
        return Decision(tuple(Kept(row) for row in torch.cat(rows, dim=-1)))

    def _viewed(self, view: View, layer: int, state: State) -> Decision:
        """The best rows where the attention has moved on since the last step, all rows where it has not."""
        import torch

        attention, _ = view.attention("last", layer=layer - 1)
        scored = view.tokens - 1 if self.published and view.tokens > 1 else view.tokens
        score = attention.mean(dim=1).squeeze(1)[:, :scored]
        keep = int((1 - self.decode_rate) * scored) if self.published else min(view.keep, view.tokens)
        best = dual.top_k(score, keep).sort(dim=-1).values if keep else score.new_zeros(len(score), 0).long()
        rest = torch.arange(scored, view.tokens, device=score.device).expand(view.units, -1)
        best = torch.cat((best, rest), dim=-1)
        everything = torch.arange(view.tokens, device=score.device)
        likeness = self.likeness(view.ids(), score, state).tolist()
        return Decision(
            tuple(
                Kept(everything if cosine >= self.similarity else row)
                for cosine, row in zip(likeness, best, strict=True)
            )
        )

    @staticmethod
    def likeness(ids: Sequence[int], score: Tensor, state: State) -> Tensor:
        """Cosine of each unit's attention with that of the step before, 0 at the first, (B,); remembers this step's.

        Args:
            ids: The units.
            score: (B, N).
            state: Lives as long as the cache.
        """
        import torch

        last: dict[int, Tensor] = state.setdefault("attention", {})
        before = torch.stack([last.get(unit, torch.zeros_like(row)) for unit, row in zip(ids, score, strict=True)])
        last.update(zip(ids, score, strict=True))
        return (dual.l2_normalize(before) * dual.l2_normalize(score)).sum(dim=-1)


def _reference(frame: int) -> int:
    """The frame that a frame is compared with: within its group of four, a reference with the one before."""
    if frame % 2:
        return frame - 1
    return frame - 2 if frame % _GROUP else max(0, frame - _GROUP)
