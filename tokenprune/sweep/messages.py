"""Messages between executors and workers: orders, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenprune.cell import Cell, Outcome, Phase

SMALLER = 4
"""How many times smaller the batches of an attempt after too little memory are."""


@dataclass(frozen=True, slots=True)
class Began:
    """A worker took a part of a cell; `attempt` counts the workers that did, this one included."""

    cell_id: str
    worker: str
    attempt: int = 1
    part: Phase = "answers"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker is with a running cell; told about once a second, for displays.

    Args:
        cell_id: The cell.
        worker: Who runs it.
        done: Samples asked so far.
        total: Samples of the cell.
        kept: Visual tokens that stay of a sample, the mean so far; `None` where that is not known yet.
        samples_per_s: Samples of this and the cells beside it per second, once the first batch is behind; before that,
            with what the start took.
        memory_mib: Of the worker: what it has allocated on its GPU, else what it holds of the machine's memory.
    """

    cell_id: str
    worker: str
    done: int
    total: int
    kept: float | None = None
    samples_per_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """All questions of a cell were asked, and what they gave is on disk; its cost is still to be measured."""

    cell_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A cell has its result or its error in the sweep directory."""

    cell_id: str
    outcome: Outcome


Report = Began | Progress | Answered | Ended


@dataclass(frozen=True, slots=True)
class Order:
    """One cell for one worker, or several that run together.

    Args:
        cell: The cell.
        attempt: Which attempt this is.
        batch_size: Samples per batch in place of the cell's own, for this attempt.
        beside: Further cells of the same company.
        part: What of the cells is run.
        suspect: A worker has died with it: never to be put together with others again.
        moves: Workers that were taken away from it.
    """

    cell: Cell
    attempt: int = 1
    batch_size: int | None = None
    beside: tuple[Cell, ...] = ()
    part: Phase = "answers"
    suspect: bool = False
    moves: int = 0

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of the order."""
        return (self.cell, *self.beside)

    def singles(self) -> list[Order]:
        """One order for each cell."""
        return [replace(self, cell=cell, beside=()) for cell in self.cells]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        cells = [cell.to_json() for cell in self.cells]
        return {"cells": cells, "attempt": self.attempt, "batch_size": self.batch_size, "part": self.part}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Order:
        """The inverse of `to_json`, for a worker."""
        first, *beside = map(Cell.from_json, data["cells"])
        return cls(first, data["attempt"], data["batch_size"], tuple(beside), data["part"])

    def smaller(self) -> int | None:
        """The batch size of an attempt after too little memory; `None` where it was smaller already, or cannot be."""
        if self.batch_size is not None or self.cell.batch_size == 1 or self.part == "cost":
            return None
        return max(1, self.cell.batch_size // SMALLER)


@dataclass(frozen=True, slots=True)
class Ready:
    """A new worker can be given orders."""

    worker: str


@dataclass(frozen=True, slots=True)
class Took:
    """A worker began the order that it was given."""

    worker: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker ended its order; what came out of each cell, by its id, is on disk."""

    worker: str
    outcomes: Mapping[str, Outcome | Literal["answered"]]


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone.

    Args:
        worker: Which.
        cause: How, for people (`signal SIGKILL`).
        log: The end of what it printed.
        out_of_memory: True where it is known that there was too little memory.
        blameless: True where it is known that it was taken away, whatever it did.
    """

    worker: str
    cause: str
    log: str = ""
    out_of_memory: bool = False
    blameless: bool = False


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """A worker cannot write to the sweep directory."""

    worker: str
    message: str
    hint: str


Message = Ready | Took | Progress | Finished | Died | DiskFailed


def message_of(worker: str, report: Mapping[str, Any]) -> Message:
    """What a worker said of itself as JSON: `ready`, `began`, `progress`, `ended` with the outcomes, or `disk`."""
    if report["report"] == "ready":
        return Ready(worker)
    if report["report"] == "began":
        return Took(worker)
    if report["report"] == "progress":
        return Progress(worker=worker, **{key: value for key, value in report.items() if key != "report"})
    if report["report"] == "ended":
        return Finished(worker, report["outcomes"])
    return DiskFailed(worker, report["message"], report["hint"])
