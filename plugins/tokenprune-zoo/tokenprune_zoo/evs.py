"""EVS: keep what differs from the same place in the frame before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.pruner import Decision, ModelFacts, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.video import asked_share

if TYPE_CHECKING:
    from torch import Tensor

#: Dissimilarity of the first frame, which has no frame before it; above every other (published value).
_FIRST = 255.0


@pruner(
    "evs",
    summary="Tokens that are least like the same cell of the previous frame; the first frame whole",
    source=Source(
        title="Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
        authors="Bagrov et al.",
        venue="arXiv 2025",
        url="https://arxiv.org/abs/2510.14624",
        code="https://github.com/vllm-project/vllm",
    ),
    axes=Axes(
        site="LLM input",
        groups="video",
        duplication="cosine with the same cell of the previous frame",
        selector="top-k",
    ),
    formula="top-k of 1 - cos(z_fp, z_(f-1)p) over the video; the first frame goes first",
    needs=("projected", "geometry"),
    fidelity=(
        "The form after the projector (the paper's other one compares pixels). Published: never fewer tokens than one "
        "frame has, so that a small budget keeps the first frame alone, whole, and an image is not pruned: "
        "`published=true`, with max(P, floor(ratio N)) rows. Otherwise the budget holds: under one frame's worth the "
        "cells of the first frame are taken evenly spread, as nothing tells them apart. Equal cells go in raster "
        "order and original positions are kept, as published."
    ),
    variants=({"published": True},),
)
@dataclass(frozen=True)
class EVS(OneCut):
    """Keep what is new.

    Args:
        published: Never keep less than one frame.
    """

    site: ClassVar[SiteKind] = "input"

    published: bool = False

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the LLM input."""
        (stop,) = super().plan(facts, budget, tokens)
        return (Stop(stop.site, stop.budget, auto=self.published),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k of the dissimilarity."""
        cells, keep = view.tokens // view.frames(), view.keep
        if self.published:
            keep = max(cells, int(view.tokens * asked_share(stop, view.tokens)))
        score = self.score(view)
        if keep < cells:
            score[:, dual.even_places(cells, keep)] = 2.0 * _FIRST
        return Decision.keep(dual.top_k(score, keep))

    def score(self, view: View) -> Tensor:
        """Dissimilarity to the frame before, (B, N)."""
        frames = view.frames()
        cells = dual.by_frame(view.projected(), frames)
        score = 1.0 - dual.cell_cosine(cells, [max(0, frame - 1) for frame in range(frames)])
        score[:, 0] = _FIRST
        return score.flatten(1)
