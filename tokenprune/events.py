"""What happens in a sweep, as frozen facts: one object per hook call, so that fields can be added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenprune.cell import Cell, Part

FailedOutcome = Literal["failed", "refused"]
SweepStatus = Literal["complete", "failures", "interrupted"]


@dataclass(frozen=True, slots=True)
class SweepStarted:
    """A sweep begins or continues.

    Args:
        directory: The sweep directory.
        sweep_id: Made once, when the directory was; stays the same when the sweep continues.
        name: Name of the sweep for people.
        config: The resolved sweep file, plain JSON types.
        cells: All planned cells in the order of the plan.
        finished: Ids of the cells that need no more work, with their state (`done`, `failed`, `refused`).
        changes: Why cells that were planned before are new ones now (another version, other files), and which were run
            with other versions than those that are installed, a sentence each.
    """

    directory: Path
    sweep_id: str
    name: str
    config: Mapping[str, Any]
    cells: tuple[Cell, ...]
    finished: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A worker took a part of a cell, for the `attempt`-th time; `done` of `total` cells are finished.

    The part `answers` comes first; `cost` where there is one to measure.
    """

    directory: Path
    sweep_id: str
    cell: Cell
    worker: str
    done: int
    total: int
    attempt: int = 1
    part: Part = "answers"


@dataclass(frozen=True, slots=True)
class CellAnswered:
    """All questions of a cell were asked; it ends when its cost was measured. Displays are told; trackers are not."""

    directory: Path
    sweep_id: str
    cell: Cell


@dataclass(frozen=True, slots=True)
class CellProgress:
    """How far a running cell is, about once a second. Displays are told; trackers are not.

    Args:
        directory: The sweep directory.
        sweep_id: The sweep's id.
        cell: The cell.
        worker: Who runs it.
        samples_done: Samples asked so far.
        samples: Samples of the cell.
        kept_tokens: Visual tokens that stay of a sample, the mean so far; `None` where that is not known.
        samples_per_s: Samples of the worker per second, also of cells that it runs beside this one, or `None`.
        memory_mib: What the worker holds of its device's memory, or `None`.
    """

    directory: Path
    sweep_id: str
    cell: Cell
    worker: str
    samples_done: int
    samples: int
    kept_tokens: float | None = None
    samples_per_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True, slots=True)
class CellEnded:
    """A cell is complete: `result` is what `result.json` holds."""

    directory: Path
    sweep_id: str
    cell: Cell
    result: Mapping[str, Any]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class CellFailed:
    """A cell has no result: it `failed`, or its pruner `refused` it (impossible budget, unfit model).

    `error` is what `error.json` holds: `type`, `message`, `hint`, `traceback`.
    """

    directory: Path
    sweep_id: str
    cell: Cell
    outcome: FailedOutcome
    error: Mapping[str, Any]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class SweepEnded:
    """The sweep ended; counts are of the whole plan, not only of this invocation.

    `tracking_s` of its `seconds` went into the hooks of trackers so far, most of them beside the work.
    """

    directory: Path
    sweep_id: str
    status: SweepStatus
    done: int
    failed: int
    refused: int
    pending: int
    seconds: float
    tracking_s: float = 0.0


Tracked = SweepStarted | CellStarted | CellEnded | CellFailed | SweepEnded
"""What trackers are told: a hook each."""

Event = Tracked | CellAnswered | CellProgress
"""What displays are told."""
