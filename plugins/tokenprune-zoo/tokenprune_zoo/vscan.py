"""VScan: local and global patches from two encoder depths, the others merged in, then a cut in the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, encoder_layer, solved_stops

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@pruner(
    "vscan",
    summary="CLS attention at two depths, half of it by windows; the rest merges in; last-row attention in the decoder",
    source=Source(
        title="VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
        authors="Zhang et al.",
        venue="arXiv 2025",
        url="https://arxiv.org/abs/2505.22654",
        code="https://github.com/Tencent/SelfEvolvingAgent",
    ),
    axes=Axes(
        site="LLM input, then entering decoder layer 16 of 32",
        budget="ratio or tokens, three times as many at the first cut",
        groups="square windows (local half)",
        magnitude="CLS attention at two encoder depths; a of the last prompt token",
        duplication="cosine of projected features (merge only)",
        selector="quota and top-k, then top-k",
        merge="mean into the most similar kept token",
    ),
    formula="half by a_cls(shallow) in windows, half by a_cls(deep), others merged into the most similar; top-T of a",
    needs=("encoder_attention", "projected", "geometry", "attention"),
    sites=("input", "layer"),
    fidelity=(
        "Windows are filled by falling score up to a cap of ceil(k / windows), left-over rows and columns join the "
        "last window (the published rule of its Qwen port; the cap grows where small windows could not hold k). "
        "`published=true` takes floor(k / windows) of each window and loses the remainder, the rule of its LLaVA port. "
        "An encoder without CLS gives received attention, as published for Qwen. The first cut keeps three times "
        "the tokens of the second (published: 96 to 32, 192 to 64, 288 to 96), at most all. Positions are compacted, "
        "as published for LLaVA. `relative=true` scales the published layers (encoder index 5 of 24, decoder 16 of "
        "32) to the model's depth; `relative=false` takes them as they are and refuses a shallower model."
    ),
    variants=(
        {"window": 1},
        {"window": 3},
        {"window": 100},
        {"local_share": 0.0},
        {"local_share": 1.0},
        {"shallow_layer": 2, "layer": 2, "relative": False},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class VScan(Pruner):
    """Scan the picture globally and locally, then let the prompt choose.

    Args:
        window: Side of a window, in tokens.
        local_share: Share of the first cut that goes by windows, in [0, 1].
        shallow_layer: Encoder layer of the local scan, 0-based, of 24.
        layer: Decoder layer that the second cut enters, of 32.
        relative: Scale both layers to the model's depth.
        published: Lose the remainder of the window quotas.
    """

    positions: ClassVar[PositionPolicy] = "compact"

    window: int = 6
    local_share: float = 0.5
    shallow_layer: int = 5
    layer: int = 16
    relative: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        if self.window < 1 or not 0.0 <= self.local_share <= 1.0:
            raise ConfigError(
                f"`vscan` needs window >= 1 and 0 <= local_share <= 1, got {self.window} and {self.local_share}",
                hint="the published values are 6 and 0.5",
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """Three times the final count at the input, the final count in the decoder."""
        layer = decoder_layers("vscan", "layer", (self.layer,), facts, self.relative)[0]
        sites = (Site("input"), Site("layer", layer))

        def counts(share: float) -> list[float]:
            return [3.0 * share * tokens, share * tokens]

        stops = solved_stops("vscan", sites, counts, facts, budget, tokens)
        if not self.published:
            return stops
        return tuple(replace(stop, auto=stop.site.kind == "input") for stop in stops)  # local picks are rounded down

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Scan and merge at the input, top-k in the decoder."""
        if stop.site.kind == "layer":
            attention, _ = view.attention("last")
            return Decision.keep(dual.top_k(attention.mean(dim=1).squeeze(1), view.keep))
        kept = self.scanned(view).sort(dim=-1).values
        if kept.shape[-1] == view.tokens:
            return Decision.keep(kept)
        assignment = dual.assign(dual.cosine_duplication(view.projected(), signed=True), kept)
        merge = dual.mean_map(assignment, kept)
        return Decision(tuple(Kept(anchors, merge=rows) for anchors, rows in zip(kept, merge, strict=True)))

    def scanned(self, view: View) -> Tensor:
        """Local picks, then global ones, (B, K)."""
        import torch

        shallow = self._attention(view, encoder_layer(self.shallow_layer, view.facts, self.relative))
        deep = self._attention(view, None)
        local = int(view.keep * self.local_share)
        windows = self._windows(view.frames(), view.grid(), shallow.device)
        near = self._local(shallow, windows, local)
        far = deep.masked_fill(dual.member_mask(near, view.tokens), -torch.inf)
        count = view.keep - (local if self.published else near.shape[-1])
        return torch.cat((near, dual.top_k(far, count)), dim=-1) if count else near

    def _local(self, score: Tensor, windows: Tensor, local: int) -> Tensor:
        """The local picks, (B, local) or fewer as published."""
        sizes = windows.bincount().tolist()
        if self.published:
            cap = local // len(sizes)
            local = sum(min(size, cap) for size in sizes)
        else:
            cap = math.ceil(local / len(sizes))
            while sum(min(size, cap) for size in sizes) < local:
                cap += 1
        return dual.capped_top_k(score, windows, cap, local) if local else windows[:0].expand(score.shape[0], 0)

    def _windows(self, frames: int, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Window of each token, (N,); every frame has windows of its own."""
        import torch

        rows, columns = (
            (torch.arange(side, device=device) // self.window).clamp_max(max(1, side // self.window) - 1)
            for side in grid
        )
        cells = (rows[:, None] * (int(columns[-1]) + 1) + columns[None, :]).flatten()
        first = torch.arange(frames, device=device)[:, None] * (int(cells.max()) + 1)
        return (first + cells).flatten()

    @staticmethod
    def _attention(view: View, layer: int | None) -> Tensor:
        """Head mean of CLS attention, or received attention where there is no CLS, (B, N)."""
        return view.cls_attention(layer).mean(dim=1) if view.facts.has_cls else view.received_attention(layer)
