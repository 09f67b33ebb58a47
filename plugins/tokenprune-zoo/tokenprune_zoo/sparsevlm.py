"""SparseVLM: words that concern the picture rate its tokens; some of the dropped are recycled as cluster means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import DECODER_DEPTH, decoder_layers, geometric, solved_stops

if TYPE_CHECKING:
    from torch import Tensor

_NOISE = 1e-6


@pruner(
    "sparsevlm",
    summary="Attention of the words that concern the picture, at three depths; the best of the dropped are recycled",
    source=Source(
        title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
        authors="Zhang et al.",
        venue="ICML 2025",
        url="https://arxiv.org/abs/2410.04417",
        code="https://github.com/Gumpest/SparseVLMs",
    ),
    axes=Axes(
        site="entering decoder layers 3, 7, 16 of 32",
        budget="ratio or tokens, a constant share stays at each cut; or the rank of the attention",
        magnitude="mean attention of the rater words, layer K-1",
        duplication="Euclidean distance of hidden states (recycling only)",
        selector="top-k, then density peaks",
        merge="cluster means of the best dropped tokens",
    ),
    formula="raters: r_t > mean r, r_t = mean_i softmax_t(z_i . h_t); top-k of mean_{raters, heads} a_ti, layer K-1",
    needs=("attention", "hidden", "projected", "text", "fingerprint", "qkv"),
    sites=("layer",),
    fidelity=(
        "Version 1.5. Rows out of a cut count recycled ones too: k is the largest number that with its floor(pool / "
        "10) + 1 clusters gives the budget (tiny budgets: half of each). Counts fall by a constant share per cut; "
        "`kept` takes published lists (300/200/110 for 192 of 576). A cluster stands at the position of its centre. "
        "Ties of density go to the lower index; theirs to random noise, which a caller may put into "
        "`state['density_noise']`. Without a word above the mean all words rate. `rank_scale > 0` is the rule of "
        "version 1.0, k = min(int(rank scale + bias), n - 1); the budget is not read. `plus=true` is SparseVLM+: "
        "attention divided by the response of RoPE to all-ones vectors (read off queries and keys with and without "
        "RoPE), the most visual heads only (14 of 32), no recycling, original positions. Version 1.5 compacts them, as "
        "published. `relative=true` scales the published layers (after 2, 6, 15) and heads to the model; "
        "`relative=false` takes them as they are and refuses a shallower model."
    ),
    variants=(
        {"recycle_share": 0.0},
        {"recycle_share": 1.0},
        {"plus": True},
        {"plus": True, "heads": 2, "layers": (2, 3), "relative": False},
        {"layers": (2, 3), "relative": False},
        {"kept": (20, 10, 5)},
        {"rank_scale": 3.0},
        {"rank_scale": 1.0, "rank_bias": 8.0},
    ),
)
@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keep what the relevant words attend to, and a digest of the best of the rest.

    Args:
        layers: Decoder layers that the cuts enter, of 32; scores come from the layer before.
        kept: Tokens kept at each cut, recycled ones not counted; empty solves them from the budget.
        relative: Scale `layers` and `heads` to the model.
        recycle_share: Share of the dropped that is recycled, in [0, 1]; 0 switches it off.
        rank_scale: Kept tokens per rank of the rater attention; 0 goes by the budget.
        rank_bias: Added to that.
        plus: SparseVLM+.
        heads: Heads that rate in SparseVLM+, of 32.
    """

    positions: ClassVar[PositionPolicy] = "compact"

    layers: tuple[int, ...] = (3, 7, 16)
    kept: tuple[int, ...] = ()
    relative: bool = True
    recycle_share: float = 0.3
    rank_scale: float = 0.0
    rank_bias: float = 1.0
    plus: bool = False
    heads: int = 14

    def __post_init__(self) -> None:
        if self.kept and len(self.kept) != len(self.layers):
            raise ConfigError(
                f"option `kept` of `sparsevlm` needs one count per layer, got {self.kept} for {self.layers}",
                hint="leave it empty to solve the counts from the budget",
            )
        if not 0.0 <= self.recycle_share <= 1.0 or self.heads < 1 or min(self.kept, default=1) < 1:
            raise ConfigError("`sparsevlm` needs 0 <= recycle_share <= 1, heads >= 1 and counts >= 1 in `kept`")
        if self.plus:
            object.__setattr__(self, "positions", "keep")

    @property
    def reads_budget(self) -> bool:
        """Counts by `kept` or by the rank go by no budget."""
        return not self.kept and self.rank_scale <= 0.0

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop per layer."""
        layers = decoder_layers("sparsevlm", "layers", self.layers, facts, self.relative)
        sites = [Site("layer", layer) for layer in layers]
        if self.rank_scale > 0.0:
            return tuple(Stop(site, Budget(ratio=1.0), auto=True) for site in sites)
        if not self.kept:
            return solved_stops("sparsevlm", sites, geometric(tokens, len(sites)), facts, budget, tokens)
        stops, present = [], tokens
        for site, count in zip(sites, self.kept, strict=True):
            count = max(1, min(count, present - 1))
            present = min(present, count + self._clusters(present - count)[1])
            stops.append(Stop(site, Budget(tokens=present)))
        return tuple(stops)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k by the raters, then the recycled rows."""
        rows, raters = self.rated(view, stop.site.layer, state)
        score = (rows * raters.unsqueeze(-1)).sum(dim=1) / raters.sum(dim=1, keepdim=True)
        hidden, noise = view.hidden(), state.get("density_noise")
        if self.rank_scale <= 0.0:
            if view.keep == view.tokens:
                return Decision.keep(dual.top_k(score, view.tokens))
            stage = decoder_layers("sparsevlm", "layers", self.layers, view.facts, self.relative).index(stop.site.layer)
            count, clusters = self._split(view.tokens, view.keep, stage)
            return Decision(self.recycled(score, hidden, count, clusters, noise))
        units: list[Kept] = []
        for unit in range(view.units):
            count = self._by_rank(rows[unit][raters[unit]])
            clusters = self._clusters(view.tokens - count)[1]
            own = slice(unit, unit + 1)
            units += self.recycled(score[own], hidden[own], count, clusters, None)
        return Decision(tuple(units))

    def rated(self, view: View, layer: int, state: State) -> tuple[Tensor, Tensor]:
        """Attention of each word, mean over the heads that rate, (B, T, N), and the words that rate, (B, T) bool."""
        raters = self.raters(view, state)
        attention, mask = view.attention("text", layer=layer - 1)
        raters = raters[:, : mask.shape[1]] & mask
        if not self.plus:
            return attention.mean(dim=1), raters
        with_rope = view.queries("text", rope=True, layer=layer - 1)[0], view.keys(rope=True, layer=layer - 1)
        without = view.queries("text", rope=False, layer=layer - 1)[0], view.keys(rope=False, layer=layer - 1)
        gravity = dual.rotary_response((with_rope[0], without[0]), (with_rope[1], without[1]))
        gravity = gravity.where(gravity.abs() > 1e-6, gravity.new_tensor(1e-6))
        corrected = attention / gravity.unsqueeze(1) * raters[:, None, :, None]
        total = attention.shape[1]
        count = math.floor(self.heads * total / DECODER_DEPTH + 0.5) if self.relative else self.heads
        best = dual.top_k(corrected.sum(dim=(2, 3)), max(1, min(count, total)))
        chosen = dual.member_mask(best, total)[:, :, None, None]
        return (corrected * chosen).sum(dim=1) / best.shape[-1], raters

    def raters(self, view: View, state: State) -> Tensor:
        """Words that concern the picture, (B, T) bool; chosen once, before the first cut."""
        import torch

        known = state.setdefault("raters", {})
        prints = view.fingerprints()
        if not all(print_ in known for print_ in prints):
            text, mask = view.text_embeddings()
            logits = (view.projected() @ text.transpose(-1, -2)).masked_fill(~mask.unsqueeze(1), -torch.inf)
            relevance = torch.softmax(logits, dim=-1).mean(dim=1)
            mean = relevance.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp_min(1)
            above = (relevance > mean) & mask
            above = torch.where(above.any(dim=-1, keepdim=True), above, mask)
            for print_, row in zip(prints, above, strict=True):
                known.setdefault(print_, row)  # chosen already: that choice stays
        width = max(known[print_].shape[0] for print_ in prints)
        return torch.stack(
            [torch.nn.functional.pad(known[print_], (0, width - known[print_].shape[0])) for print_ in prints]
        )

    def recycled(
        self, score: Tensor, hidden: Tensor, count: int, clusters: int, noise: Tensor | None
    ) -> tuple[Kept, ...]:
        """The `count` best in raster order, then the cluster means of the best of the others."""
        import torch

        tokens = score.shape[-1]
        ranked = dual.top_k(score, tokens)
        kept = ranked[:, :count].sort(dim=-1).values
        if clusters == 0 or count == tokens:
            return Decision.keep(kept).units
        pool = ranked[:, count : count + max(clusters, self._clusters(tokens - count)[0])]
        features = hidden.gather(1, pool.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        noise = None if noise is None else _NOISE * noise.to(features)
        centres, assignment = dual.density_peaks(features, clusters, neighbours=clusters, noise=noise)
        member = dual.one_hot(assignment, clusters).transpose(-1, -2)
        means = torch.zeros(len(pool), clusters, tokens, device=member.device).scatter(
            -1, pool.unsqueeze(1).expand_as(member), member / member.sum(dim=-1, keepdim=True)
        )
        merge = torch.cat((dual.one_hot(kept, tokens), means), dim=1)
        anchors = torch.cat((kept, pool.gather(-1, centres)), dim=-1)
        labels = ("kept",) * count + ("recycled",) * clusters
        return tuple(Kept(row, merge=rows, labels=labels) for row, rows in zip(anchors, merge, strict=True))

    def _clusters(self, dropped: int) -> tuple[int, int]:
        """Size of the pool and number of clusters for so many dropped tokens."""
        if self.plus or self.recycle_share == 0.0 or dropped == 0:
            return 0, 0
        pool = min(dropped, int(self.recycle_share * dropped) + 1)
        return pool, pool // 10 + 1

    def _split(self, tokens: int, rows: int, stage: int) -> tuple[int, int]:
        """Kept tokens and clusters that make so many rows."""
        if self.kept:
            count = max(1, min(self.kept[stage], tokens - 1))
            return count, self._clusters(tokens - count)[1]
        for count in range(rows, 0, -1):
            if count + self._clusters(tokens - count)[1] == rows:
                return count, rows - count
        return math.ceil(rows / 2), rows // 2

    def _by_rank(self, rows: Tensor) -> int:
        """Tokens to keep by the rank of the raters' attention (R, N), version 1.0."""
        import torch

        tokens, rank = rows.shape[-1], int(torch.linalg.matrix_rank(rows))
        if rank == tokens:
            return tokens
        return max(1, min(int(rank * self.rank_scale + self.rank_bias), tokens - 1))
