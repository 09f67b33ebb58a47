"""The baselines of every comparison: no pruning, random choice, a grid, average pooling, down-sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tokenprune.budget import Budget
from tokenprune.hookspecs import hookimpl
from tokenprune.pruner import (
    Decision,
    Kept,
    ModelFacts,
    OneCut,
    Pruner,
    ScoredPruner,
    SiteKind,
    State,
    Stop,
    View,
    pruner,
)
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenprune.registry import PrunerSpec


@pruner(
    "none",
    summary="no pruning: the control of every table",
    source=Source("the model as it is"),
    axes=Axes(site="none", budget="all", selector="all"),
    formula="S = {1..N}",
    baseline=True,
)
@dataclass(frozen=True)
class NoPruning(Pruner):
    """Keep every visual token."""

    @property
    def reads_budget(self) -> bool:
        """`False`, because all tokens stay."""
        return False

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """No stop."""
        return ()

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Keep all tokens; never called, because there is no stop."""
        import torch

        everything = torch.arange(view.tokens, device=view.indices().device)
        return Decision.keep(everything.expand(view.units, -1))


@pruner(
    "random",
    summary="uniform choice without replacement, drawn from the image's content and the seed",
    source=Source("baseline"),
    axes=Axes(site="input", selector="sample"),
    formula="S ~ uniform over subsets of size K",
    needs=("fingerprint",),
    fidelity="the draw depends on seed, pixels and prompt, never on the place in the batch; report several seeds",
    baseline=True,
)
@dataclass(frozen=True)
class RandomPruning(ScoredPruner):
    """Keep K tokens drawn at random.

    Args:
        seed: Seed of the draw.
    """

    site: ClassVar[SiteKind] = "input"
    seed: int = 0

    def score(self, view: View) -> Tensor:
        """Uniform random numbers, from a separate generator for each unit."""
        from tokenprune.composition.selectors import drawn

        return drawn(view, self.seed)


@pruner(
    "grid",
    summary="evenly spaced tokens: stride along the raster, or cells of a coarser grid",
    source=Source("baseline"),
    axes=Axes(site="input", duplication="spatial distance", selector="stride"),
    formula="S = {floor((i + 1/2) N / K) : i = 0..K-1}",
    needs=("geometry",),
    fidelity=(
        "`raster` spaces evenly in one dimension and gives exactly K; `cells` takes the centres of the largest "
        "squarish r x c <= K grid (of each frame, with K over the frames), then fills up to K along the raster"
    ),
    baseline=True,
)
@dataclass(frozen=True)
class GridPruning(OneCut):
    """Keep evenly spaced tokens, independent of their content.

    Args:
        spacing: `cells`, the centres of a coarser grid, or `raster`, a constant stride.
    """

    site: ClassVar[SiteKind] = "input"
    spacing: Literal["cells", "raster"] = "cells"

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """The same tokens for every unit."""
        import torch

        if self.spacing == "raster" or view.tokens != view.original_tokens:
            chosen = _stride(view.tokens, view.keep)
        else:
            spans = max(1, min(view.frames(), view.keep))
            shares = [view.keep * (span + 1) // spans - view.keep * span // spans for span in range(spans)]
            rows, columns = view.grid()
            chosen = torch.cat(
                [
                    frame * rows * columns + _spread((rows, columns), share)
                    for frame, share in zip(_stride(view.frames(), spans).tolist(), shares, strict=True)
                ]
            )
        return Decision.keep(chosen.to(view.indices().device).expand(view.units, -1))


@pruner(
    "avgpool",
    summary="average of the LLM input embeddings over the cells of a coarser grid",
    source=Source("baseline"),
    axes=Axes(site="input", duplication="same cell", selector="cells", merge="mean"),
    formula="row_c = mean of z_i over cell c, at the position of the cell's centre",
    needs=("geometry",),
    fidelity="the grid is the largest squarish r x c with r * c <= K, so fewer than K tokens may stay",
    baseline=True,
)
@dataclass(frozen=True)
class AveragePooling(OneCut):
    """Average the tokens of each cell."""

    site: ClassVar[SiteKind] = "input"

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """One averaging map for every unit."""
        import torch

        frames, grid = view.frames(), view.grid()
        spans = min(frames, view.keep)
        cells = coarser_grid(grid, view.keep // spans)
        time = torch.arange(frames) * spans // frames
        row, column = torch.arange(grid[0]) * cells[0] // grid[0], torch.arange(grid[1]) * cells[1] // grid[1]
        cell = ((time[:, None, None] * cells[0] + row[:, None]) * cells[1] + column).reshape(-1)
        merge = torch.zeros(spans * cells[0] * cells[1], view.tokens)
        merge[cell, torch.arange(view.tokens)] = 1.0
        merge /= merge.sum(dim=1, keepdim=True)
        device = view.indices().device
        anchors = _stride(frames, spans)[:, None] * grid[0] * grid[1] + _centres(grid, cells)
        return Decision((Kept(anchors.reshape(-1).to(device), merge=merge.to(device)),) * view.units)

    @property
    def auto(self) -> bool:
        """`True`: the grid has at most as many cells as the budget."""
        return True


@pruner(
    "downsample",
    summary="the picture itself is made smaller before the vision encoder",
    source=Source("VTC-Bench", venue="ACL 2026", url="https://arxiv.org/abs/2510.07143"),
    axes=Axes(site="pixels", selector="resize", merge="resize"),
    formula="image resized to (r * patch, c * patch), r * c <= K",
    needs=("geometry",),
    fidelity=(
        "bicubic with antialiasing; a tower of fixed resolution runs with interpolated position embeddings; the "
        "tokens stand at the positions of the cell centres; the grid is the largest squarish r x c with r * c <= K"
    ),
    baseline=True,
)
@dataclass(frozen=True)
class DownSampling(OneCut):
    """Resize the image so that the encoder makes at most K tokens."""

    site: ClassVar[SiteKind] = "pixels"

    @property
    def auto(self) -> bool:
        """`True`: the grid has at most as many cells as the budget."""
        return True

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """The coarser grid."""
        import torch

        frames, grid = view.frames(), view.grid()
        cells = coarser_grid(grid, max(1, view.keep // frames))
        device = view.indices().device
        first = torch.arange(frames, device=device)[:, None] * (grid[0] * grid[1])
        anchors = (first + _centres(grid, cells).to(device)).reshape(-1)
        return Decision((Kept(anchors),) * view.units, resize=cells)


def coarser_grid(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """The grid (rows, columns) with the most cells, at most `keep`, whose aspect is close to that of `grid`."""
    candidates = ((rows, min(grid[1], keep // rows)) for rows in range(1, min(grid[0], keep) + 1) if keep // rows >= 1)
    aspect = grid[0] / grid[1]

    def keeps_shape(cells: tuple[int, int]) -> bool:
        stretch = abs(math.log(cells[0] / cells[1] / aspect))
        return stretch < math.log(1.4) or abs(cells[0] - cells[1] * aspect) <= 1

    squarish = [cells for cells in candidates if keeps_shape(cells)]
    return max(squarish or [(1, 1)], key=lambda cells: (cells[0] * cells[1], -abs(cells[0] - cells[1]), cells[0]))


def _stride(count: int, keep: int) -> Tensor:
    """`keep` of `count` indices, evenly spaced."""
    import torch

    return ((torch.arange(keep, dtype=torch.float64) + 0.5) * count / max(1, keep)).long()


def _spread(grid: tuple[int, int], keep: int) -> Tensor:
    """`keep` tokens of one image: the cell centres of a coarser grid, then evenly spaced others."""
    import torch

    score = torch.zeros(grid[0] * grid[1], dtype=torch.float64)
    score[_stride(len(score), keep)] = 1.0
    score[_centres(grid, coarser_grid(grid, keep))] = 2.0
    return score.sort(descending=True, stable=True).indices[:keep]


def _centres(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Index of the token nearest to the centre of each cell, in raster order."""
    import torch

    lines = [
        (((torch.arange(count, dtype=torch.float64) + 0.5) * size / count).floor().long()).clamp(max=size - 1)
        for size, count in zip(grid, cells, strict=True)
    ]
    return (lines[0][:, None] * grid[1] + lines[1][None, :]).reshape(-1)


@hookimpl
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Register the baselines."""
    for baseline in (NoPruning, RandomPruning, GridPruning, AveragePooling, DownSampling):
        register(baseline.spec)
