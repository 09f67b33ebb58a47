"""A sweep directory as one object: what was planned, what came out, what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.sweep.config import REFERENCE
from tokenprune.sweep.ledger import CellState, Header, Ledger
from tokenprune.sweep.plan import Cell

PALETTE = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#3b4cc0",
    "#b40426", "#006d2c", "#fd8d3c", "#54278f", "#a6761d", "#66a61e", "#e7298a", "#1b9e77", "#7570b3", "#d95f02",
)  # fmt: skip
REFERENCE_COLOUR = "#444444"


@dataclass(frozen=True)
class Finished:
    """One cell with what is known about it; `result` or `error` is there once it ended."""

    cell: Cell
    state: CellState
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True)
class SweepData:
    """Everything that reports read."""

    ledger: Ledger
    header: Header
    cells: tuple[Finished, ...]

    def samples(self, cell: Cell) -> list[dict[str, Any]]:
        """The cell's sample rows."""
        return self.ledger.samples(cell.id)

    def colours(self) -> dict[str, str]:
        """One colour per pruner label, in the order of the plan, the unpruned model in grey."""
        labels = list(dict.fromkeys(entry.cell.label for entry in self.cells if entry.cell.pruner != REFERENCE))
        colours = {label: PALETTE[place % len(PALETTE)] for place, label in enumerate(labels)}
        reference = {entry.cell.label: REFERENCE_COLOUR for entry in self.cells if entry.cell.pruner == REFERENCE}
        return {**reference, **colours}


def read_sweep(directory: str | Path) -> SweepData:
    """Read a sweep directory.

    Raises:
        ConfigError: It is not one, or it is of another version.
    """
    ledger = Ledger(directory)
    header = ledger.header()
    cells = []
    for cell in ledger.plan():
        state = ledger.state(cell.id)
        result = ledger.result(cell.id) if state == "done" else None
        error = ledger.error(cell.id) if state in ("failed", "refused") else None
        cells.append(Finished(cell, state, result, error))
    return SweepData(ledger, header, tuple(cells))
