"""One JSON line per event in `events.jsonl`.

This is the smallest tracker: copy it to write your own.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from tokenprune.cells.events import CellEnded, CellFailed, CellStarted, SweepEnded, SweepStarted

TOKENPRUNE_TRACKER = "jsonl"
EVENTS_FILE = "events.jsonl"


@hookimpl
def on_sweep_start(event: SweepStarted) -> None:
    """Note how many cells are planned, and how many are finished already."""
    counts = {"cells": len(event.cells), "finished": len(event.finished)}
    _append(event.directory, "sweep_start", **counts, changes=list(event.changes))


@hookimpl
def on_cell_start(event: CellStarted) -> None:
    """Note which worker took which phase of which cell."""
    facts = {"cell": event.cell.id, "name": event.cell.name, "worker": event.worker, "attempt": event.attempt}
    _append(event.directory, "cell_start", part=event.phase, **facts)


@hookimpl
def on_cell_end(event: CellEnded) -> None:
    """Note the accuracy."""
    accuracy = event.result["quality"]["accuracy"]
    _append(event.directory, "cell_end", cell=event.cell.id, name=event.cell.name, accuracy=accuracy)


@hookimpl
def on_cell_error(event: CellFailed) -> None:
    """Note what went wrong."""
    message = event.error.get("message", "")
    _append(event.directory, f"cell_{event.outcome}", cell=event.cell.id, name=event.cell.name, message=message)


@hookimpl
def on_sweep_end(event: SweepEnded) -> None:
    """Note how it ended."""
    counts = {"done": event.done, "failed": event.failed, "refused": event.refused, "pending": event.pending}
    _append(event.directory, "sweep_end", status=event.status, seconds=event.seconds, **counts)


def _append(directory: Path, kind: str, **facts: Any) -> None:
    from tokenprune.sweep.store.atomic_io import append_line

    line = json.dumps({"event": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts})
    append_line(directory / EVENTS_FILE, line)
