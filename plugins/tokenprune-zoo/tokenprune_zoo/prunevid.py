"""PruneVid: merge what stands still over time and what is alike in space, then keep what the question looks at."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, solved_stops
from tokenprune_zoo.video import CellSet, DensityNoise, emitted_sets, split_by_size

if TYPE_CHECKING:
    from torch import Tensor


#: Most tokens in the density estimate, the token itself among them.
_NEIGHBOURS = 7
#: Published: a set is merged only if it has more tokens than this.
_SMALL = 14


@pruner(
    "prunevid",
    summary="Static cells merge over a window, like ones over space; then the text's attention inside each set",
    source=Source(
        title="PruneVid: Visual Token Pruning for Efficient Video Large Language Models",
        authors="Huang et al.",
        venue="ACL Findings 2025",
        url="https://arxiv.org/abs/2412.16117",
        code="https://github.com/Visual-AI/PruneVid",
    ),
    axes=Axes(
        site="LLM input, then entering decoder layer 11 of 32; caches of the layers before it too",
        budget="ratio or tokens, 1 / 0.4 times as many at the first cut",
        groups="windows of frames; static set and each frame's other cells",
        magnitude="largest a over heads and words, without RoPE and causal mask, layer K-1",
        duplication="mean pairwise cosine over the window (time), Euclidean distance (space)",
        selector="density peaks by quota, then top-k by quota",
        merge="means over time and over clusters",
    ),
    formula=(
        "a cell is static in a window if its mean pairwise cosine exceeds tau; density peaks of each set; in each set "
        "the top of max_{heads, words} a"
    ),
    needs=("projected", "geometry", "attention"),
    sites=("input", "layer"),
    fidelity=(
        "Published: floor(0.25 F) windows from density peaks of the frames' means, at least one here; every set of "
        "more than 14 cells becomes floor(n / 2) rows; in the decoder each set keeps int(alpha n): `published=true`, "
        "whatever the budget, with rows in order of falling density times distance. Otherwise the first cut "
        "keeps 1 / alpha times the budget (at most all) and the second one the budget, both shared out over the sets "
        "by size; where static cells save more rows than may go, the most static go first. A set without a row "
        "loses its tokens. Published tau and ratios are those of the evaluation; the library's own switch the method "
        "off. The published cut acts on the output of layer 10, that is entering layer 11. Original positions are "
        "kept, in both parts (published: renumbered after the first). An image is one frame without static cells; "
        "where the first cut had nothing to do, each frame is a set of the second. Ties of density go to the lower "
        "index; theirs to random noise, which a caller may put into `state['density_noise']`. `relative=true` scales "
        "the layer to the model's depth; `relative=false` refuses a shallower model."
    ),
    variants=(
        {"tau": -1.0},
        {"tau": 1.0},
        {"segment_ratio": 1.0},
        {"cluster_ratio": 0.25},
        {"alpha": 1.0},
        {"alpha": 0.1},
        {"layer": 2, "relative": False},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class PruneVid(Pruner):
    """Merge the background, then read what the question needs.

    Args:
        tau: Mean cosine over a window above which a cell is static.
        segment_ratio: Windows per frame, in (0, 1].
        cluster_ratio: Rows per cell of a set, in (0, 1]; read with `published` only.
        alpha: Share that the second cut keeps of the first one's, in (0, 1]; 1 leaves the second cut out.
        layer: Decoder layer that the second cut enters, of 32; the score comes from the layer before.
        relative: Scale `layer` to the model's depth.
        published: Reproduce the published counts and order (see the fidelity note).
    """

    positions: ClassVar[PositionPolicy] = "keep"

    tau: float = 0.8
    segment_ratio: float = 0.25
    cluster_ratio: float = 0.5
    alpha: float = 0.4
    layer: int = 11
    relative: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        shares = (self.segment_ratio, self.cluster_ratio, self.alpha)
        if not all(0.0 < share <= 1.0 for share in shares):
            raise ConfigError(
                f"`prunevid` needs segment_ratio, cluster_ratio and alpha in (0, 1], got {shares}",
                hint="the published values are 0.25, 0.5 and 0.4",
            )

    @property
    def reads_budget(self) -> bool:
        """The published counts follow from options and data."""
        return not self.published

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the LLM input, one in the decoder that reaches back."""
        sites = [Site("input")]
        if self.alpha < 1.0:
            sites.append(Site("layer", decoder_layers("prunevid", "layer", (self.layer,), facts, self.relative)[0]))
        if self.published:
            stops = tuple(Stop(site, Budget(ratio=1.0), auto=True) for site in sites)
        else:

            def counts(share: float) -> list[float]:
                sizes = [tokens * min(1.0, share / self.alpha), tokens * share]
                return sizes[-len(sites) :]

            stops = solved_stops("prunevid", sites, counts, facts, budget, tokens)
        return tuple(dataclasses.replace(stop, kv_from=0) if stop.site.kind == "layer" else stop for stop in stops)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Merge at the input, choose in the decoder; the sets of the former are the groups of the latter."""
        if stop.site.kind == "layer":
            return self._chosen(view, stop.site.layer, state)
        cells = dual.by_frame(view.projected(), view.frames())
        groups: dict[int, Tensor] = state.setdefault("groups", {})
        units = []
        for unit, number in enumerate(view.ids()):
            noise = DensityNoise(state, unit)
            sets = self.sets(cells[unit], None if self.published else view.keep, noise)
            units.append(self._merged(cells[unit], sets, view.keep, noise))
            groups[number] = self._groups(sets, view.tokens // view.frames(), view.tokens)
        return Decision(tuple(units))

    def sets(self, cells: Tensor, keep: int | None, noise: DensityNoise) -> list[CellSet]:
        """The sets of one video: of every window the static one, then one for each frame.

        Args:
            cells: (F, P, D).
            keep: Rows that must be left, or `None`.
            noise: For ties of density.
        """
        import torch

        means = cells.mean(dim=1)
        spans = dual.runs(self.labels(means, noise.take(1, means.shape[0], means)))
        cosine = torch.stack([dual.mean_pairwise_cosine(cells[first : last + 1]) for first, last in spans])
        longer = torch.tensor([last - first for first, last in spans], device=cells.device)[:, None]
        static = (cosine > self.tau) & (longer > 0)
        if keep is not None:
            order = cosine.masked_fill(~static, -torch.inf).flatten().sort(descending=True, stable=True).indices
            saved = (longer * static).flatten()[order].cumsum(dim=0)
            fits = saved <= cells.shape[0] * cells.shape[1] - keep
            static = static & torch.zeros_like(static.flatten()).scatter(0, order, fits).view_as(static)
        found = []
        for span, still in zip(spans, static.cpu(), strict=True):
            found.append(CellSet(span, still.nonzero().squeeze(-1).to(cells.device), static=True))
            moving = (~still).nonzero().squeeze(-1).to(cells.device)
            found += [CellSet((frame, frame), moving, static=False) for frame in range(span[0], span[1] + 1)]
        return [entry for entry in found if entry.size]

    def labels(self, frames: Tensor, noise: Tensor | None = None) -> list[int]:
        """Cluster of each frame, made contiguous: a window is a run of equal labels.

        Args:
            frames: Mean feature of each frame, (F, D).
            noise: Added to the densities, (1, F).
        """
        count = frames.shape[0]
        clusters = max(1, int(count * self.segment_ratio))
        _, label = dual.density_peaks(frames[None], clusters, neighbours=min(_NEIGHBOURS, count), noise=noise)
        return refined(label[0].tolist())

    def _merged(self, cells: Tensor, sets: Sequence[CellSet], keep: int, noise: DensityNoise) -> Kept:
        """The rows of one video (F, P, D)."""
        sizes = [entry.size for entry in sets]
        quotas = [self._published_rows(size) for size in sizes] if self.published else split_by_size(sizes, keep)
        rows = [self._clustered(entry.means(cells), quota, noise) for entry, quota in zip(sets, quotas, strict=True)]
        video = cells.shape[0], cells.shape[1]
        kept = emitted_sets(sets, rows, video, raster=not self.published)
        whole = kept.anchors.numel() == cells.shape[0] * cells.shape[1]
        return dataclasses.replace(kept, merge=None) if whole else kept

    @staticmethod
    def _groups(sets: Sequence[CellSet], cells: int, tokens: int) -> Tensor:
        """The set of each original token, (N,)."""
        group = sets[0].cells.new_zeros(tokens)
        for number, entry in enumerate(sets):
            group[entry.places(cells).flatten()] = number
        return group

    def _published_rows(self, cells: int) -> int:
        """Rows of a set of so many cells; small sets are left alone."""
        return int(cells * self.cluster_ratio) if cells > _SMALL else cells

    def _clustered(self, means: Tensor, quota: int, noise: DensityNoise) -> tuple[Tensor, Tensor]:
        """Centres, best first, and the weights of their clusters' means: (q,) and (q, n)."""
        import torch

        size = means.shape[0]
        ties = noise.take(1, size, means) if quota < size else None
        if quota in (0, size):
            places = torch.arange(quota, device=means.device)
            return places, dual.one_hot(places[None], size)[0]
        centres, assignment = dual.density_peaks(means[None], quota, neighbours=min(_NEIGHBOURS, size), noise=ties)
        member = dual.one_hot(assignment[0], quota).T
        return centres[0], member / member.sum(dim=-1, keepdim=True)

    def _chosen(self, view: View, layer: int, state: State) -> Decision:
        """The best of every set by the text's attention."""
        import torch

        score, indices = self.score(view, layer), view.indices()
        known: dict[int, Tensor] = state.get("groups", {})
        cells = view.original_tokens // view.frames()
        frames = torch.arange(view.original_tokens, device=score.device) // cells
        units = []
        for unit, number in enumerate(view.ids()):
            group = known.get(number, frames)[indices[unit]]
            sizes = torch.bincount(group)
            if self.published:
                quotas = torch.tensor([[int(self.alpha * size) for size in sizes.tolist()]], device=score.device)
            else:
                quotas = dual.split_budget(sizes[None], view.keep, sizes)
            kept = dual.quota_members(score[unit : unit + 1], group, quotas)[0]
            units.append(Kept(kept.nonzero().squeeze(-1)))
        return Decision(tuple(units))

    def score(self, view: View, layer: int) -> Tensor:
        """Largest attention over heads and words in the layer before the cut, (B, N)."""
        attention, mask = view.attention("text", rope=False, layer=layer - 1, support="all")
        return attention.masked_fill(~mask[:, None, :, None], 0.0).amax(dim=(1, 2))


def refined(labels: Sequence[int]) -> list[int]:
    """Make clusters of frames contiguous.

    Of every label only its longest runs stay: all of several equally long ones, none of a single frame. The gaps in
    between are filled from left to right. Each joins the longer one of the two runs around it, the earlier of two equal
    ones; the run before it counts with the gaps that have joined it by then. Where no run stays, all frames get the
    label of the first.

    Source: Huang et al., "PruneVid", 2024 (temporal segmentation).
    """
    spans = dual.runs(labels)
    longest: dict[int, int] = {}
    for first, last in spans:
        longest[labels[first]] = max(longest.get(labels[first], 0), last - first + 1)
    stays = [1 < last - first + 1 == longest[labels[first]] for first, last in spans]
    kept = [stay for stay, (first, last) in zip(stays, spans, strict=True) for _ in range(first, last + 1)]
    if not any(kept):
        return [labels[0]] * len(labels)
    filled = list(labels)
    for first, last in dual.runs(kept):
        if kept[first]:
            continue
        before, behind = filled[:first][::-1], labels[last + 1 :]
        earlier = _leading(before) >= _leading(behind)
        filled[first : last + 1] = [before[0] if earlier else behind[0]] * (last + 1 - first)
    return filled


def _leading(labels: Sequence[int]) -> int:
    """Length of the run at the start."""
    return sum(1 for _ in itertools.takewhile(lambda label: label == labels[0], labels))
