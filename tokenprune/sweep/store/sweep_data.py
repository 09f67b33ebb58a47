"""A sweep directory as one object: what was planned, what came out, what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.cell import Cell
from tokenprune.sweep.store.result_store import CellState, Header, Ledger


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
