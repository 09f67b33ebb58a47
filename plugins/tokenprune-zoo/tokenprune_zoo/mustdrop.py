"""MustDrop: like neighbours merge in the encoder; in the decoder two thresholds, and patches that must stay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.pruner import Decision, Kept, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, geometric, require_encoder, solved_stops

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = 3
"""Side of a window, in tokens."""


@pruner(
    "mustdrop",
    summary="Like windows merge in the encoder; sum and maximum of the text's attention, best CLS patches protected",
    source=Source(
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        authors="Liu et al.",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2411.10803",
        code="https://github.com/liuting20/MustDrop",
    ),
    axes=Axes(
        site="entering encoder layer 1; entering decoder layers 3, 7, 11, 15 of 32, their caches from layer 2 on",
        budget="ratio or tokens, or three thresholds",
        groups="3 x 3 window (encoder), image",
        magnitude="larger of sum and maximum of the text's attention, each by its threshold; CLS attention (protected)",
        duplication="mean pairwise cosine inside a window (encoder)",
        selector="threshold per window; protected set, then top-k",
        merge="mean of a window",
    ),
    formula="merge windows of mean cosine >= tau; keep the 8 % best of a_cls, then top-k of "
    "max(sum_t a_ti / (theta_g sum), max_t a_ti / theta_p)",
    needs=("attention", "encoder_attention", "hidden", "geometry"),
    sites=("tower", "layer"),
    fidelity=(
        "Published: a window merges where it is like itself, and a token goes if it is under both of two thresholds, "
        "which are tuned per data set, so that counts follow from the data; `published=true` does this and does not "
        "read the budget. Otherwise windows merge by the threshold, the most alike first, but never below the count of "
        "the first decoder cut, and both decoder thresholds are scaled by one factor that meets the budget, which is a "
        "top-k of the larger quotient; the protected go first. Decoder counts fall by a constant share per cut. What "
        "the windows merge comes on top: images may differ after the encoder, the last count is exact, and an average "
        "over the layers (account `average`) is exact with `vision=false` and otherwise not exceeded. A window is the "
        "mean of its tokens in the place of the last; merged windows come first as published with `published=true`, "
        "otherwise in raster order, as do all rows. Windows at the right and lower edge are smaller where the side is "
        "no multiple of 3; one of a single token never merges. The protected are chosen at the first decoder cut "
        "by the last encoder layer's attention among the merged rows. Scores come from the layer before the cut "
        "(published: after layers 2, 6, 10, 14); the last cut reaches back to the caches from the layer before the "
        "first cut on, as published. Positions are compacted, as published. `vision=false` has no encoder part. "
        "`relative=true` scales the published decoder layers to the model's depth; `relative=false` refuses a "
        "shallower model."
    ),
    variants=(
        {"protected_share": 0.0},
        {"protected_share": 1.0},
        {"global_threshold": 0.5},
        {"individual_threshold": 0.5},
        {"layers": (1,), "relative": False},
        {"vision": False},
        {"window_threshold": -1.0},
        {"published": True},
        {"published": True, "global_threshold": 0.02},
    ),
)
@dataclass(frozen=True)
class MustDrop(Pruner):
    """Drop what no word attends to, unless the encoder insists on it.

    Args:
        layers: Decoder layers that the cuts enter, of 32.
        relative: Scale `layers` to the model's depth.
        protected_share: Share of the patches that must stay, by CLS attention of the last encoder layer.
        global_threshold: theta_g, share of the attention of all visual tokens.
        individual_threshold: theta_p, attention of a single word.
        published: Merge and drop by the thresholds, whatever the budget.
        vision: Merge windows inside the encoder.
        window_threshold: tau, mean cosine from which a window merges.
    """

    positions: ClassVar[PositionPolicy] = "compact"

    layers: tuple[int, ...] = (3, 7, 11, 15)
    relative: bool = True
    protected_share: float = 0.08
    global_threshold: float = 0.0012
    individual_threshold: float = 0.001
    published: bool = False
    vision: bool = True
    window_threshold: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 <= self.protected_share <= 1.0 or min(self.global_threshold, self.individual_threshold) <= 0.0:
            raise ConfigError(
                "`mustdrop` needs 0 <= protected_share <= 1 and thresholds > 0, got "
                f"{self.protected_share}, {self.global_threshold} and {self.individual_threshold}",
                hint="the published values are 0.08, 0.0012 and 0.001",
            )
        if not -1.0 <= self.window_threshold <= 1.0:
            raise ConfigError(
                f"option `window_threshold` of `mustdrop` is a cosine in [-1, 1], got {self.window_threshold}",
                hint="the published value is 0.8",
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Without the encoder part, attention only."""
        return self.spec.needs if self.vision else ("attention", "encoder_attention")

    @property
    def reads_budget(self) -> bool:
        """The published counts follow from options and data."""
        return not self.published

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """The encoder cut, whose count follows from the data, then one stop per decoder layer."""
        layers = decoder_layers("mustdrop", "layers", self.layers, facts, self.relative)
        sites = [Site("layer", layer) for layer in layers]
        if self.published:
            stops = tuple(Stop(site, Budget(ratio=1.0), auto=True) for site in sites)
        else:
            stops = solved_stops("mustdrop", sites, geometric(tokens, len(sites)), facts, budget, tokens)
        stops = (*stops[:-1], dataclasses.replace(stops[-1], kv_from=layers[0] - 1))
        if not self.vision:
            return stops
        require_encoder("mustdrop", facts, "leave the encoder part out with `vision: false`")
        if facts.encoder_read_layer < 1:
            raise IncompatibleError(
                "`mustdrop` merges windows entering encoder layer 1, but the projector reads layer 0",
                hint="leave the encoder part out with `vision: false`",
            )
        return (Stop(Site("tower", 1), stops[0].budget, auto=True), *stops)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Merged windows in the encoder; top-k with the protected first, or all over a threshold, in the decoder."""
        if stop.site.kind == "tower":
            return self._merged(view)
        score, protected = self.score(view, stop.site.layer), self.protected(view, state)
        if self.published:
            return Decision(tuple(Kept(row.nonzero().squeeze(-1)) for row in (score >= 1.0) | protected))
        best = score.amax(dim=-1, keepdim=True).clamp_min(1e-30)
        return Decision.keep(dual.top_k(score / best + 2.0 * protected, view.keep))

    def score(self, view: View, layer: int) -> Tensor:
        """The larger of both quotients, (B, N); 1 is the published threshold."""
        import torch

        attention, mask = view.attention("text", layer=layer - 1)
        rows = attention.mean(dim=1) * mask.unsqueeze(-1)
        total, single = rows.sum(dim=1), rows.amax(dim=1)
        share = total / total.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        return torch.maximum(share / self.global_threshold, single / self.individual_threshold)

    def protected(self, view: View, state: State) -> Tensor:
        """Tokens that must stay, (B, N) bool; chosen once per unit, at its first decoder cut."""
        import torch

        known: dict[int, Tensor] = state.setdefault("protected", {})
        if not all(unit in known for unit in view.ids()):
            count = math.ceil(self.protected_share * view.tokens)
            best = dual.top_k(view.cls_attention(-1).mean(dim=1), view.tokens)[:, :count]
            for unit, row in zip(view.ids(), view.indices().gather(-1, best), strict=True):
                known.setdefault(unit, row)  # chosen already: that choice stays
        return torch.stack([torch.isin(row, known[unit]) for unit, row in zip(view.ids(), view.indices(), strict=True)])

    def window_similarity(self, view: View) -> tuple[Tensor, Tensor]:
        """Mean cosine of the pairs in each window (B, W), -2 where there are none, and the windows' members (W, N)."""
        import torch

        rows, columns = view.grid()
        across = math.ceil(columns / _WINDOW)
        cell = torch.arange(view.tokens, device=view.hidden().device)
        frame, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        window = (frame * math.ceil(rows / _WINDOW) + row // _WINDOW) * across + column // _WINDOW
        members = (window == torch.arange(int(window[-1]) + 1, device=cell.device).unsqueeze(-1)).float()
        features = dual.l2_normalize(view.hidden())
        together = (members @ features).square().sum(dim=-1) - features.square().sum(dim=-1) @ members.T
        pairs = members.sum(dim=-1) * (members.sum(dim=-1) - 1.0)
        return torch.where(pairs > 0, together / pairs.clamp_min(1.0), -2.0), members

    def _merged(self, view: View) -> Decision:
        """Windows of like tokens as one row each, as far as the next cut's count allows."""
        similarity, members = self.window_similarity(view)
        gone = members.sum(dim=-1) - 1.0
        order = dual.top_k(similarity, similarity.shape[-1])
        like = similarity.gather(-1, order) >= self.window_threshold
        if not self.published:
            like &= gone[order].cumsum(dim=-1) <= view.tokens - view.keep
        return Decision(tuple(self._joined(ranked[one], members) for ranked, one in zip(order, like, strict=True)))

    def _joined(self, chosen: Tensor, members: Tensor) -> Kept:
        """One unit with the chosen windows (M,) as one row each; rows of the published order are windows first."""
        import torch

        places = torch.arange(members.shape[-1], device=members.device)
        if not len(chosen):
            return Kept(places)
        inside = members[chosen]
        rest = (inside.sum(dim=0) == 0).nonzero().squeeze(-1)
        anchors = torch.cat((torch.where(inside > 0, places, -1).amax(dim=-1), rest))
        merge = torch.cat((inside / inside.sum(dim=-1, keepdim=True), dual.one_hot(rest, len(places))))
        order = torch.arange(len(anchors), device=anchors.device) if self.published else anchors.argsort()
        return Kept(anchors[order], merge=merge[order])
