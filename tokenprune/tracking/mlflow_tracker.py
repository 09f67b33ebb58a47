"""The MLflow tracker: a view of the sweep directory that can be refilled from it at any time.

It keeps nothing in memory between events: each one opens the directory's store and says what the files say. mlflow
itself is imported at the first event, never when plugins are listed.

A store that fails once is left alone until the sweep ends (a lost server answers only after minutes of retries): the
file `tracking.json` is there while the store is well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tokenprune.errors import PrerequisiteError
from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenprune.report.reading import Finished
    from tokenprune.sweep.events import CellEnded, CellFailed, SweepEnded, SweepStarted
    from tokenprune.tracking.mlflow_store import MlflowStore


@hookimpl
def on_sweep_start(event: SweepStarted) -> None:
    """Open and migrate the store before any worker starts, and log what an earlier process finished but did not log."""
    _health_file(event.directory).unlink(missing_ok=True)
    with _store(event.directory) as store:
        store.announce()
        store.reconcile()


@hookimpl
def on_cell_end(event: CellEnded) -> None:
    """Log the cell's run."""
    from tokenprune.report.reading import Finished

    _log(event.directory, Finished(event.cell, "done", event.result, None))


@hookimpl
def on_cell_error(event: CellFailed) -> None:
    """Log a run with status FAILED and the error."""
    from tokenprune.report.reading import Finished

    _log(event.directory, Finished(event.cell, event.outcome, None, event.error))


@hookimpl
def on_sweep_end(event: SweepEnded) -> None:
    """Write the report and the summary run.

    Raises:
        PrerequisiteError: The store failed during the sweep.
    """
    if not _health_file(event.directory).is_file():
        raise PrerequisiteError(
            "the MLflow store failed during the sweep, so its runs are missing or incomplete",
            hint="nothing is lost: run the same sweep again when the store is back",
        )
    with _store(event.directory) as store:
        store.reconcile()
        store.log_summary(event.status, event.seconds)


def replay(directory: str | Path) -> int:
    """Fill an MLflow store with everything that a sweep directory holds; what is there already stays.

    Returns:
        How many cells were logged now.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    with _store(Path(directory).resolve()) as store:
        store.announce()
        logged = store.reconcile()
        store.log_summary("replayed", 0.0)
        return len(logged)


def _log(directory: Path, entry: Finished) -> None:
    if _health_file(directory).is_file():
        with _store(directory) as store:
            store.log_cell(entry)


@contextmanager
def _store(directory: Path) -> Iterator[MlflowStore]:
    """The directory's store; a failure takes the health file away."""
    from tokenprune.tracking.mlflow_store import open_store

    try:
        yield open_store(directory)
    except BaseException:
        _health_file(directory).unlink(missing_ok=True)
        raise


def _health_file(directory: Path) -> Path:
    from tokenprune.sweep.runner import TRACKING_FILE

    return directory / TRACKING_FILE
