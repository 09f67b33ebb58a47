"""Evenly spaced tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenprune.baselines.coarser_grid import spread, stride
from tokenprune.pruner import Decision, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


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
            chosen = stride(view.tokens, view.keep)
        else:
            spans = max(1, min(view.frames(), view.keep))
            shares = [view.keep * (span + 1) // spans - view.keep * span // spans for span in range(spans)]
            rows, columns = view.grid()
            chosen = torch.cat(
                [
                    frame * rows * columns + spread((rows, columns), share)
                    for frame, share in zip(stride(view.frames(), spans).tolist(), shares, strict=True)
                ]
            )
        return Decision.keep(chosen.to(view.indices().device).expand(view.units, -1))
