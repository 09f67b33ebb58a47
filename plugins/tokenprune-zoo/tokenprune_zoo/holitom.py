"""HoliTom: windows of frames in which the most tokens repeat, then half of what is left, inside the decoder."""

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
from tokenprune_zoo.schedule import decoder_layers, solved_stops
from tokenprune_zoo.video import CellSet, DensityNoise, asked_share, emitted_sets, split_by_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tokenprune.dual.video import Span

#: Most tokens in the density estimate, the token itself among them.
_NEIGHBOURS = 7


@dataclass(frozen=True, slots=True)
class Windows:
    """A video cut into windows of frames.

    Args:
        spans: First and last frame of each window.
        saved: Tokens that repeat within their windows.
        similar: Whether each cell of frame f is like the one of frame f + 1, (F - 1, P) bool, on the host.
    """

    spans: tuple[Span, ...]
    saved: int
    similar: Tensor

    def ratio(self, share: float) -> float:
        """What stays of the rest so that a share R of all tokens stays, at most 1 (published)."""
        tokens = (self.similar.shape[0] + 1) * self.similar.shape[1]
        return min(share / ((tokens - self.saved) / tokens), 1.0)

    def sets(self, device: torch.device) -> list[CellSet]:
        """Of every window the static cells, then the others frame by frame."""
        found = []
        for first, last in self.spans:
            constant = self.similar[first:last].all(dim=0) & (last > first)
            found.append(CellSet((first, last), constant.nonzero().squeeze(-1).to(device), static=True))
            moving = (~constant).nonzero().squeeze(-1).to(device)
            found += [CellSet((frame, frame), moving, static=False) for frame in range(first, last + 1)]
        return [entry for entry in found if entry.size]


@pruner(
    "holitom",
    summary="Repeating cells of a window of frames as one, the rest by received attention; then last-row attention",
    source=Source(
        title="HoliTom: Holistic Token Merging for Fast Video Large Language Models",
        authors="Shao et al.",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2505.21334",
        code="https://github.com/cokeshao/HoliTom",
    ),
    axes=Axes(
        site="LLM input, then entering decoder layer 18 of 32",
        budget="ratio or tokens, twice as many at the first cut",
        groups="windows of frames",
        magnitude="received attention of the encoder; a of the last prompt token, layer K-1",
        duplication="cosine with the same cell of the next frame; Euclidean distance (density peaks)",
        selector="dynamic programme, then quota, density peaks and top-k; then top-k",
        merge="mean over the window, weighted mean into a density peak; mean into the most similar kept token",
    ),
    formula=(
        "windows: max sum (cells whose neighbouring cosines all exceed tau) x (frames - 1); static: 0.6 centre + 0.4 "
        "mean of its others; dynamic: top of a_received per frame; decoder: top-k of mean_heads a_last"
    ),
    needs=("projected", "encoder_attention", "geometry", "attention", "hidden"),
    sites=("input", "layer"),
    fidelity=(
        "The outer part keeps 1 / (1 - r) times the budget, the inner part the budget (r = 1/2: twice, at most all). "
        "Published: the ratio is the outer part's; it grows by what the windows saved, then every static and dynamic "
        "set is rounded on its own, and the inner part removes r of what comes in: `published=true`, which also emits "
        "static rows before the others of their window. Otherwise the budget is shared out over the sets by size, and "
        "where the windows save more than may go, tau rises to the least value at which they do not. Dropped tokens "
        "of the inner part go into the kept one with the largest cosine, as a mean; published, by halves one after "
        "the other in raster order, so that the last weighs 1/2. Received attention is the mean over heads and rows of "
        "the layer that the projector reads (published: the last). Original positions are kept, in both parts "
        "(published: renumbered after the outer one). An image has no static cells: top-k of received attention. Ties "
        "of density go to the lower index; theirs to random noise, which a caller may put into "
        "`state['density_noise']`. The published code's default layer is 3, its documented one 18. `relative=true` "
        "scales the layer to the model's depth; `relative=false` refuses a shallower model."
    ),
    variants=(
        {"tau": -2.0},
        {"tau": 1.0},
        {"centre_weight": 1.0},
        {"inner_rate": 0.0},
        {"inner_rate": 0.9},
        {"layer": 2, "relative": False},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class HoliTom(Pruner):
    """Show what stays the same once, then let the prompt choose.

    Args:
        tau: Cosine of neighbouring frames above which a cell is static.
        centre_weight: Weight of a cluster's centre in its static row, in [0, 1].
        layer: Decoder layer that the inner cut enters, of 32; the score comes from the layer before.
        inner_rate: r, share that the inner cut removes, in [0, 1); 0 leaves it out.
        relative: Scale `layer` to the model's depth.
        published: Reproduce the published counts, order and inner merge (see the fidelity note).
    """

    positions: ClassVar[PositionPolicy] = "keep"

    tau: float = 0.8
    centre_weight: float = 0.6
    layer: int = 18
    inner_rate: float = 0.5
    relative: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.centre_weight <= 1.0 or not 0.0 <= self.inner_rate < 1.0:
            raise ConfigError(
                "`holitom` needs 0 <= centre_weight <= 1 and 0 <= inner_rate < 1, got "
                f"{self.centre_weight} and {self.inner_rate}",
                hint="the published values are 0.6 and 0.5",
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the LLM input, one in the decoder."""
        sites = [Site("input")]
        if self.inner_rate:
            sites.append(Site("layer", decoder_layers("holitom", "layer", (self.layer,), facts, self.relative)[0]))
        if self.published:
            shares = (budget, Budget(ratio=1.0))
            return tuple(Stop(site, share, auto=True) for site, share in zip(sites, shares, strict=False))

        def counts(share: float) -> list[float]:
            sizes = [tokens * min(1.0, share / (1.0 - self.inner_rate)), tokens * share]
            return sizes[-len(sites) :]

        return solved_stops("holitom", sites, counts, facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Merge over time and space at the input, by attention in the decoder."""
        import torch

        if stop.site.kind == "layer":
            return self._inner(view, stop.site.layer)
        cells = dual.by_frame(view.projected(), view.frames())
        received = dual.by_frame(view.received_attention(), view.frames())
        if not self.published and view.keep == view.tokens:
            return Decision.keep(torch.arange(view.tokens, device=cells.device).expand(view.units, -1))
        units = []
        for unit in range(view.units):
            windows = self.windows(cells[unit], None if self.published else view.keep)
            sets = windows.sets(cells.device)
            if self.published:
                ratio = windows.ratio(asked_share(stop, view.tokens))
                quotas = [
                    round(entry.size * ratio) if entry.static else math.ceil(entry.size * ratio) for entry in sets
                ]
            else:
                quotas = split_by_size([entry.size for entry in sets], view.keep)
            noise = DensityNoise(state, unit)
            rows = [
                self._static(entry.means(cells[unit]), quota, noise)
                if entry.static
                else self._dynamic(received[unit, entry.span[0], entry.cells], quota)
                for entry, quota in zip(sets, quotas, strict=True)
            ]
            units.append(emitted_sets(sets, rows, (cells.shape[1], cells.shape[2]), raster=not self.published))
        return Decision(tuple(units))

    def windows(self, cells: Tensor, keep: int | None) -> Windows:
        """The windows of one video.

        Args:
            cells: (F, P, D).
            keep: Rows that must be left, which raises tau where it has to; `None` takes tau as it is.
        """
        import torch

        frames, count = cells.shape[:2]
        cosine = dual.cell_cosine(cells[None], [max(0, frame - 1) for frame in range(frames)])[0, 1:].cpu()

        def at(tau: float) -> Windows:
            similar = cosine > tau
            return Windows(*dual.static_windows(dual.constant_cells(similar[None])[0].tolist()), similar)

        found = at(self.tau)
        if keep is None or frames * count - found.saved >= keep:
            return found
        values = torch.unique(cosine[cosine > self.tau]).tolist()
        low, high = 0, len(values) - 1  # above the largest cosine nothing is static
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if frames * count - at(values[middle]).saved >= keep else (middle + 1, high)
        return at(values[low])

    @staticmethod
    def _dynamic(received: Tensor, quota: int) -> tuple[Tensor, Tensor]:
        """The best of a frame's changing cells by received attention (n,), as they are: (q,) and (q, n)."""
        import torch

        if quota == 0:
            return torch.zeros(0, dtype=torch.long, device=received.device), received.new_zeros(0, received.numel())
        chosen = dual.top_k(received[None], quota).sort(dim=-1).values
        return chosen[0], dual.one_hot(chosen, received.numel())[0]

    def _static(self, means: Tensor, quota: int, noise: DensityNoise) -> tuple[Tensor, Tensor]:
        """Centres among the static cells, ascending, and the weights of their rows: (q,) and (q, n).

        Args:
            means: Means over the window, (n, D).
            quota: q.
            noise: For ties of density; taken whether or not there are rows.
        """
        import torch

        size = means.shape[0]
        ties = noise.take(1, size, means)
        if quota == 0:
            return torch.zeros(0, dtype=torch.long, device=means.device), means.new_zeros(0, size)
        neighbours = min(_NEIGHBOURS, quota)
        centres, assignment = dual.density_peaks(means[None], quota, neighbours=neighbours, noise=ties)
        order = centres[0].argsort()
        chosen = centres[0][order]
        member = (assignment[0] == order[:, None]).float()
        own = dual.one_hot(chosen[None], size)[0]
        others = member - own
        number = others.sum(dim=-1, keepdim=True)
        mixed = self.centre_weight * own + (1.0 - self.centre_weight) * others / number.clamp_min(1.0)
        return chosen, mixed.where(number > 0, own)

    def _inner(self, view: View, layer: int) -> Decision:
        """Top-k by the last row's attention; the others merge into the most similar kept token."""
        attention, _ = view.attention("last", layer=layer - 1)
        keep = max(1, round(view.tokens * (1 - self.inner_rate))) if self.published else view.keep
        kept = dual.top_k(attention.mean(dim=1).squeeze(1), keep).sort(dim=-1).values
        if keep == view.tokens:
            return Decision.keep(kept)
        assignment = dual.assign(dual.cosine_duplication(view.hidden(), signed=True), kept)
        merge = self._halved(assignment, kept) if self.published else dual.mean_map(assignment, kept)
        return Decision(tuple(Kept(anchors, merge=rows) for anchors, rows in zip(kept, merge, strict=True)))

    @staticmethod
    def _halved(assignment: Tensor, kept: Tensor) -> Tensor:
        """Merge map (B, K, N) of means of two, one dropped token after the other in raster order."""
        own = dual.one_hot(kept, assignment.shape[-1])
        member = dual.one_hot(assignment, kept.shape[-1]).transpose(-1, -2) - own
        later = member.flip(-1).cumsum(dim=-1).flip(-1)  # merged at this token or after it
        number = member.sum(dim=-1, keepdim=True)
        return member * 0.5**later + own * 0.5**number
