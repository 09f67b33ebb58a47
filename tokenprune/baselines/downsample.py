"""A smaller picture before the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.baselines.coarser_grid import centres, coarser_grid
from tokenprune.pruner import Decision, Kept, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


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
        anchors = (first + centres(grid, cells).to(device)).reshape(-1)
        return Decision((Kept(anchors),) * view.units, resize=cells)
