"""One colour per pruner, the same in every figure and in the dashboard."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

from tokenprune.cell import REFERENCE
from tokenprune.sweep.store.sweep_data import SweepData

REFERENCE_COLOUR = "#444444"
"""Colour of the unpruned model."""

_PALETTE = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#3b4cc0",
    "#b40426", "#006d2c", "#fd8d3c", "#54278f", "#a6761d", "#66a61e", "#e7298a", "#1b9e77", "#7570b3", "#d95f02",
)  # fmt: skip
_GOLDEN = 0.618033988749895
"""Steps of the golden ratio around the circle of hues: each new one falls into the widest gap."""


def sweep_colours(data: SweepData) -> dict[str, str]:
    """One colour per pruner label, in the order of the plan, the unpruned model in grey."""
    colours = pruner_colours(entry.cell.label for entry in data.cells if entry.cell.pruner != REFERENCE)
    reference = {entry.cell.label: REFERENCE_COLOUR for entry in data.cells if entry.cell.pruner == REFERENCE}
    return {**reference, **colours}


def pruner_colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour per label in their order, no two alike: chosen ones first, then hues that keep apart."""
    colours: dict[str, str] = {}
    taken = {REFERENCE_COLOUR}
    candidates = (_colour(place) for place in range(1 << 24))
    for label in dict.fromkeys(labels):
        colours[label] = next(colour for colour in candidates if colour not in taken)
        taken.add(colours[label])
    return colours


def _colour(place: int) -> str:
    if place < len(_PALETTE):
        return _PALETTE[place]
    hue = place * _GOLDEN % 1.0
    lightness = (0.38, 0.55, 0.68)[place % 3]
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, 0.75))
