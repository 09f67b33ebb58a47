"""Messages between the scheduler and its workers. Those that plugins get, too, are in `tokenprune.cells.events`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tokenprune.cells.cell import Cell, Outcome, Phase
from tokenprune.cells.events import CellEvaluated, CellEvent, CellProgress, CellStarted

SMALLER_BATCHES = 4
"""By how much the batches of a cell shrink after an attempt that ran out of memory."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One phase of one cell, or of several cells that a worker evaluates together.

    Args:
        cells: The cells; a cost is measured of one cell at a time.
        phase: Which phase.
        attempt: 1, or more if earlier workers died in it.
        batch_size: Samples per batch, in place of the cells' own batch size.
        closed: A worker died with these cells, so no other cells join them.
        preemptions: Workers that the queue took away from these cells.
    """

    cells: tuple[Cell, ...]
    phase: Phase = "answers"
    attempt: int = 1
    batch_size: int | None = None
    closed: bool = False
    preemptions: int = 0

    @property
    def samples_per_batch(self) -> int:
        """The batch size that this attempt runs with."""
        return self.batch_size or self.cells[0].batch_size

    def split(self) -> list[Assignment]:
        """One assignment for each cell."""
        return [replace(self, cells=(cell,)) for cell in self.cells]

    def smaller_batch_size(self) -> int | None:
        """The batch size after an attempt that ran out of memory; `None` if there is no smaller one to try."""
        if self.batch_size is not None or self.samples_per_batch == 1 or self.phase == "cost":
            return None
        return max(1, self.samples_per_batch // SMALLER_BATCHES)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "cells": [cell.to_json() for cell in self.cells]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Assignment:
        """The inverse of `to_json`."""
        return cls(**{**data, "cells": tuple(map(Cell.from_json, data["cells"]))})


@dataclass(frozen=True, slots=True)
class CellFinished(CellEvent):
    """The result or the error of a cell is in the sweep directory."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has loaded its plugins, or finished its assignment, and waits for the next one."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker is gone; its pool says so.

    Args:
        cause: Why, for people (`signal SIGKILL`).
        log: The end of what it printed.
        out_of_memory: There was too little memory, as far as is known.
        preempted: The queue or its node took it away; its cells are not to blame.
    """

    cause: str
    log: str = ""
    out_of_memory: bool = False
    preempted: bool = False


@dataclass(frozen=True, slots=True)
class StorageFailed:
    """A worker cannot write to the sweep directory: message and hint of its `StorageError`."""

    message: str
    hint: str


ExecutorEvent = CellStarted | CellProgress | CellEvaluated | CellFinished
"""What an executor yields."""

WorkerMessage = ExecutorEvent | WorkerReady | StorageFailed
"""What a worker sends to its scheduler."""

_KINDS: Mapping[str, type] = {
    kind.__name__: kind for kind in (CellStarted, CellProgress, CellEvaluated, CellFinished, WorkerReady, StorageFailed)
}


def message_to_json(message: WorkerMessage) -> dict[str, Any]:
    """A worker's message as plain JSON types: the name of its class, and what differs from the defaults."""
    values = [(each, getattr(message, each.name)) for each in fields(message)]
    facts = {each.name: value for each, value in values if value != each.default}
    if isinstance(message, CellEvent):
        facts["cell"] = message.cell.id
    return {"kind": type(message).__name__, **facts}


def message_from_json(data: Mapping[str, Any], cells: Mapping[str, Cell]) -> WorkerMessage:
    """The inverse of `message_to_json`.

    Args:
        data: The message.
        cells: The cells that it may be about, by id.
    """
    facts = {name: cells[value] if name == "cell" else value for name, value in data.items() if name != "kind"}
    message: WorkerMessage = _KINDS[data["kind"]](**facts)
    return message
