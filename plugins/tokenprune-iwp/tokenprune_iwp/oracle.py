"""The oracle: search the subset with the smallest exact attention-output error. Headroom, not a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune import dual
from tokenprune.pruner import Decision, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_iwp.selection import in_range, one_of


@pruner(
    "oracle",
    summary="Local search for the subset with the smallest exact attention-output error at the cut (headroom)",
    source=Source(title="Exact subset error of softmax attention, derived by the tokenprune authors"),
    axes=Axes(
        site="entering decoder layer 2",
        magnitude="joint",
        duplication="joint",
        selector="greedy and swap search on the exact error",
    ),
    formula="min_S sum over heads and text rows of ||o - o_S||^2, o_S renormalised over S and the text",
    needs=("qkv", "attention"),
    fidelity=(
        "Exact for one layer, the text rows of the prompt and the model's own RoPE'd attention; later layers, the "
        "visual rows and the decoded tokens are not looked at, so it is no upper bound of the task score. "
        "The search (greedy, then swaps) finds a local optimum."
    ),
    variants=(
        {"layer": 1},
        {"rows": "last"},
        {"sweeps": 0},
        {"sweeps": 2},
    ),
)
@dataclass(frozen=True)
class Oracle(OneCut):
    """Keep the subset that changes the attention output of the prompt's text least.

    Args:
        layer: Decoder layer that the cut enters, whose attention is measured.
        rows: Whose output counts: `text` or `last`.
        sweeps: Passes of swaps after the greedy start.
    """

    site: ClassVar[SiteKind] = "layer"

    layer: int = 2
    rows: str = "text"
    sweeps: int = 1

    def __post_init__(self) -> None:
        in_range("layer", self.layer, 0)
        in_range("sweeps", self.sweeps, 0)
        one_of("rows", self.rows, ("text", "last"))

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Greedy growth or elimination, then swaps."""
        attention, mask = view.attention(self.rows)  # type: ignore[arg-type]
        output, _ = view.attention_output(self.rows)  # type: ignore[arg-type]
        picks = dual.search_subset(attention, view.values(), output, view.keep, rows=mask, sweeps=self.sweeps)
        return Decision.keep(picks)
