"""Average pooling over the cells of a coarser grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.baselines.coarser_grid import centres, coarser_grid, stride
from tokenprune.pruner import Decision, Kept, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


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
        anchors = stride(frames, spans)[:, None] * grid[0] * grid[1] + centres(grid, cells)
        return Decision((Kept(anchors.reshape(-1).to(device), merge=merge.to(device)),) * view.units)

    @property
    def auto(self) -> bool:
        """`True`: the grid has at most as many cells as the budget."""
        return True
