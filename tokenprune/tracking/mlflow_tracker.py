"""A run per cell in MLflow: a view of the sweep directory that can be refilled from it at any time.

The tracker keeps nothing in memory between events. At the start and the end of a sweep it compares the whole directory
with the whole store; in between it logs each cell on its own, at a cost that does not grow with the sweep. It imports
mlflow at the first event, never when plugins are listed.

If the store fails, the tracker removes its note from the directory and leaves the store alone until the sweep ends,
because a lost server answers only after minutes of retries. At the end it logs what the store missed, if that is back.
"""

from __future__ import annotations

import http.client
import logging
import os
import shlex
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tokenprune.errors import PrerequisiteError, TokenPruneError
from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenprune.cells.events import CellEnded, CellFailed, SweepEnded, SweepStarted
    from tokenprune.sweep.store.sweep_data import CellRecord
    from tokenprune.tracking.mlflow_note import Place

TOKENPRUNE_TRACKER = "mlflow"

PROBE_S = 5.0
"""Seconds within which a server must answer the first request."""

_NOISY = ("mlflow", "alembic")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What `replay` did.

    Args:
        logged: How many cells were logged now.
        repaired: What was wrong with the directory's own store, a sentence; empty if nothing was.
        place: Where the runs are.
    """

    logged: int
    repaired: str
    place: Place


@hookimpl
def on_sweep_start(event: SweepStarted) -> None:
    """Open the store, and log what an earlier process finished but did not log.

    Raises:
        PrerequisiteError: The server does not answer; or the directory's own store was broken and is replaced.
    """
    from tokenprune.sweep.store.tracker_notes import remove_note
    from tokenprune.tracking.mlflow_store import open_store

    remove_note(event.directory, TOKENPRUNE_TRACKER)
    _probe(_retry_hint(event.directory))
    with _watched(event.directory):
        store = open_store(event.directory)
        store.announce()
        store.reconcile()
    if store.repaired:
        raise PrerequisiteError(store.repaired)  # nothing failed: this is how a plugin reports something


@hookimpl
def on_cell_end(event: CellEnded) -> None:
    """Log the cell's run."""
    from tokenprune.sweep.store.sweep_data import CellRecord

    _log(event.directory, event.sweep_id, CellRecord(event.cell, "done", event.result, None))


@hookimpl
def on_cell_error(event: CellFailed) -> None:
    """Log a run with status FAILED and the error."""
    from tokenprune.sweep.store.sweep_data import CellRecord

    _log(event.directory, event.sweep_id, CellRecord(event.cell, event.outcome, None, event.error))


@hookimpl
def on_sweep_end(event: SweepEnded) -> None:
    """Log what is missing, and the summary run with the report.

    Raises:
        PrerequisiteError: The store failed during the sweep and still fails; or the directory's own was replaced.
    """
    from tokenprune.sweep.store.tracker_notes import read_notes
    from tokenprune.tracking.mlflow_store import open_store

    lost = TOKENPRUNE_TRACKER not in read_notes(event.directory)
    try:
        if lost:
            _probe(_retry_hint(event.directory))
        with _watched(event.directory):
            store = open_store(event.directory)
            store.reconcile()
            store.log_summary(event.status, event.seconds)
    except Exception as error:
        if not lost:
            raise
        what = "the MLflow store failed during the sweep: its runs are missing or incomplete"
        raise PrerequisiteError(f"{what}; {_retry_hint(event.directory)}") from error
    if store.repaired:
        raise PrerequisiteError(store.repaired)


def replay(directory: str | Path) -> Replayed:
    """Fill an MLflow store with everything that a sweep directory holds; what is there already stays.

    Raises:
        ConfigError: The directory holds no sweep.
        PrerequisiteError: The store cannot be reached, or does not take it.
    """
    from tokenprune.report import write_report

    place = Path(directory).resolve()
    _probe("start it, or unset MLFLOW_TRACKING_URI to fill `mlflow.db` in the directory")
    write_report(place)
    with _user_errors(), _watched(place):
        from tokenprune.tracking.mlflow_store import open_store

        store = open_store(place)
        store.announce()
        logged = store.reconcile()
        return Replayed(len(logged), store.repaired, store.log_summary("replayed", 0.0))


def _log(directory: Path, sweep_id: str, entry: CellRecord) -> None:
    from tokenprune.tracking.mlflow_store import run_writer

    with _watched(directory):
        runs = run_writer(directory, sweep_id)
        if runs is not None:
            runs.log_cell(entry)


def _retry_hint(directory: Path) -> str:
    """What the user can do about a store that failed."""
    return f"nothing is lost: when it is back, `tokenprune runs replay {shlex.quote(str(directory))}` fills it"


def _probe(hint: str) -> None:
    """Check that a server answers: this takes moments, the client's own retries take minutes.

    Raises:
        PrerequisiteError: It does not.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # a password is for the client alone
    reason = ""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return  # it answers; the client will see what it refuses
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return  # it answers; the client may know its certificate
        reason = str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
    if reason:
        raise PrerequisiteError(f"the MLflow server {address} does not answer: {reason}", hint=hint)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Report MLflow's errors about a store as the user's mistake, because the user gave its address.

    Raises:
        PrerequisiteError: The store cannot be opened, or does not take a run.
    """
    from tokenprune.tracking.mlflow_runs import client_class

    client_class()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except TokenPruneError:
        raise
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:  # the last: a driver
        lines = str(error).strip().splitlines()
        raise PrerequisiteError(
            f"the MLflow store does not take the runs: {lines[0] if lines else type(error).__name__}",
            hint="MLFLOW_TRACKING_URI names it; without it, it is `mlflow.db` in the directory",
        ) from error


@contextmanager
def _watched(directory: Path) -> Iterator[None]:
    """Remove the note if the store fails, and silence MLflow's log: its errors come as exceptions too."""
    from tokenprune.sweep.store.tracker_notes import remove_note
    from tokenprune.tracking.mlflow_runs import client_class

    client_class()  # it sets the levels of mlflow's loggers, so it comes first
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except BaseException:
        remove_note(directory, TOKENPRUNE_TRACKER)
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
