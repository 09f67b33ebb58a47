"""A sweep directory as one object: what was planned, what came out, what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.cells.cell import Cell
from tokenprune.sweep.store.result_store import CellState, Header, SweepStore


@dataclass(frozen=True)
class CellRecord:
    """One cell with what is known about it; `result` or `error` is there once it ended."""

    cell: Cell
    state: CellState
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True)
class SweepData:
    """Everything that reports read."""

    store: SweepStore
    header: Header
    cells: tuple[CellRecord, ...]

    def samples(self, cell: Cell) -> list[dict[str, Any]]:
        """The cell's sample rows."""
        return self.store.samples(cell.id)


def read_sweep(directory: str | Path) -> SweepData:
    """Read a sweep directory.

    Raises:
        ConfigError: It is not one, or it is of another version.
    """
    store = SweepStore(directory)
    header = store.header()
    cells = []
    for cell in store.plan():
        state = store.state(cell.id)
        result = store.result(cell.id) if state == "done" else None
        error = store.error(cell.id) if state in ("failed", "refused") else None
        cells.append(CellRecord(cell, state, result, error))
    return SweepData(store, header, tuple(cells))
