"""The MLflow tracker: a view of the sweep directory that can be refilled from it at any time.

It keeps nothing in memory between events: at the start and at the end of a sweep the whole directory and the whole
store are compared; in between, each cell is logged on its own, at a cost that does not grow with the sweep. mlflow
itself is imported at the first event, never when plugins are listed.

A store that fails is left alone until the sweep ends (a lost server answers only after minutes of retries), and gets
everything that it missed then, if it is back: the file `tracking.json` is there while the store is well.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tokenprune.errors import PrerequisiteError
from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenprune.report.reading import Finished
    from tokenprune.sweep.events import CellEnded, CellFailed, SweepEnded, SweepStarted

PROBE_S = 5.0
"""Seconds that a server which failed before gets to say that it is back."""


@hookimpl
def on_sweep_start(event: SweepStarted) -> None:
    """Open and migrate the store, and log what an earlier process finished but did not log."""
    from tokenprune.tracking.mlflow_store import open_store

    _health_file(event.directory).unlink(missing_ok=True)
    with _health(event.directory):
        store = open_store(event.directory)
        store.announce()
        store.reconcile()


@hookimpl
def on_cell_end(event: CellEnded) -> None:
    """Log the cell's run."""
    from tokenprune.report.reading import Finished

    _log(event.directory, event.sweep_id, Finished(event.cell, "done", event.result, None))


@hookimpl
def on_cell_error(event: CellFailed) -> None:
    """Log a run with status FAILED and the error."""
    from tokenprune.report.reading import Finished

    _log(event.directory, event.sweep_id, Finished(event.cell, event.outcome, None, event.error))


@hookimpl
def on_sweep_end(event: SweepEnded) -> None:
    """Log what is missing, and the summary run with the report.

    Raises:
        PrerequisiteError: The store failed during the sweep, and still does.
    """
    from tokenprune.tracking.mlflow_store import open_store

    lost = not _health_file(event.directory).is_file()
    try:
        if lost:
            _probe()
        with _health(event.directory):
            store = open_store(event.directory)
            store.reconcile()
            store.log_summary(event.status, event.seconds)
    except Exception as error:
        if not lost:
            raise
        raise PrerequisiteError(
            "the MLflow store failed during the sweep, so its runs are missing or incomplete",
            hint=f"nothing is lost: when the store is back, `tokenprune runs replay {event.directory}` fills it",
        ) from error


def replay(directory: str | Path) -> int:
    """Fill an MLflow store with everything that a sweep directory holds; what is there already stays.

    Returns:
        How many cells were logged now.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    from tokenprune.report import write_report
    from tokenprune.tracking.mlflow_store import open_store

    place = Path(directory).resolve()
    with _health(place):
        write_report(place)
        store = open_store(place)
        store.announce()
        logged = store.reconcile()
        store.log_summary("replayed", 0.0)
        return len(logged)


def _log(directory: Path, sweep_id: str, entry: Finished) -> None:
    from tokenprune.tracking.mlflow_store import cell_runs

    with _health(directory):
        runs = cell_runs(directory, sweep_id)
        if runs is not None:
            runs.log_cell(entry)


def _probe() -> None:
    """Ask a server for a sign of life, which takes moments where the client's own retries take minutes."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return  # somebody answers; what it thinks of us will be seen


@contextmanager
def _health(directory: Path) -> Iterator[None]:
    """Take the health file away where the store fails."""
    try:
        yield
    except BaseException:
        _health_file(directory).unlink(missing_ok=True)
        raise


def _health_file(directory: Path) -> Path:
    from tokenprune.sweep.runner import TRACKING_FILE

    return directory / TRACKING_FILE
