"""What happens in a sweep, as frozen facts: one object per hook call, so that fields can be added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenprune.cells.cell import Cell, Phase

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
class CellEvent:
    """Something happened to a cell. The worker or the executor makes the event; the sweep adds its own fields.

    Args:
        cell: The cell.
        directory: The sweep directory; this and the rest are added by the sweep.
        sweep_id: The sweep's id.
        done: Cells of the plan that are finished.
        total: Cells of the plan.
    """

    cell: Cell
    _: KW_ONLY
    directory: Path = Path()
    sweep_id: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class CellStarted(CellEvent):
    """A worker begins a phase of a cell: `answers` first, then `cost` if it is to be measured.

    Args:
        worker: Name of the worker.
        attempt: 1, or more if earlier workers died in this phase.
        phase: Which phase.
    """

    worker: str = ""
    attempt: int = 1
    phase: Phase = "answers"

    @property
    def part(self) -> Phase:
        """The phase, under the name that trackers of hook versions 1 and 2 read."""
        return self.phase


@dataclass(frozen=True, slots=True)
class CellProgress(CellEvent):
    """How far a running cell is, about once a second. Displays get it, trackers do not.

    Args:
        worker: Name of the worker.
        samples_done: Samples evaluated so far.
        samples: Samples of the cell.
        kept_tokens: Mean number of visual tokens that stay of a sample so far; `None` if it is not known.
        samples_per_s: Samples per second of the worker, with those of co-scheduled cells, or `None`.
        memory_mib: Memory in MiB that the worker has allocated on its GPU, or else of the machine, or `None`.
    """

    worker: str = ""
    samples_done: int = 0
    samples: int = 0
    kept_tokens: float | None = None
    samples_per_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True, slots=True)
class CellEvaluated(CellEvent):
    """All samples of a cell are evaluated; its cost is still to be measured. Displays get it, trackers do not."""


@dataclass(frozen=True, slots=True)
class CellEnded(CellEvent):
    """A cell is complete: `result` is what `result.json` holds."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CellFailed(CellEvent):
    """A cell has no result: it `failed`, or its pruner `refused` it (impossible budget, unfit model).

    `error` is what `error.json` holds: `type`, `message`, `hint`, `traceback`.
    """

    outcome: FailedOutcome
    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SweepEnded:
    """The sweep ended; counts are of the whole plan, not only of this invocation.

    `tracking_s` of its `seconds` went into the hooks of trackers so far, most of it beside the work.
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
"""Events for trackers, with a hook each."""

Event = Tracked | CellEvaluated | CellProgress
"""Events for displays."""
