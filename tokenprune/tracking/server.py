"""The MLflow page of a sweep directory: where its runs are, and a server for them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.store.tracker_notes import TRACKING_FILE, read_notes
from tokenprune.tracking.database import DATABASE, State, database_uri, state_of
from tokenprune.tracking.mlflow_note import HOST, PORT, TRACKER, Place, read_place

START_S = 120.0
"""Seconds within which the server must answer: it takes a few, on a busy machine a minute."""

_POSIX = os.name == "posix"
_FAULTS: Mapping[State, str] = {
    "absent": "is gone",
    "broken": "does not open",
    "outdated": "was written by another version of MLflow",
}


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Where the runs of a sweep are.

    Args:
        directory: The sweep directory.
        place: The MLflow store and its views.
        moved: Whether the directory lay elsewhere when the store was written.
        behind: Whether cells were run later that were not logged to it.
    """

    directory: Path
    place: Place
    moved: bool
    behind: bool = False


def find_dashboard(directory: str | Path) -> Dashboard:
    """Where a sweep's runs are.

    Raises:
        ConfigError: The directory holds no sweep.
        PrerequisiteError: It holds a sweep without a store, or the store is lost or does not open.
    """
    store = SweepStore(directory)
    store.header()
    replay = f"`tokenprune runs replay {shlex.quote(str(store.directory))}`"
    fill = f"{replay} makes one from the directory's files"
    place = read_place(store.directory)
    if place is None:
        earlier = (store.directory / TRACKING_FILE).is_file() and not read_notes(store.directory)
        what = f"the MLflow store of {store.directory} is of an earlier version"
        raise PrerequisiteError(what if earlier else f"the sweep in {store.directory} has no MLflow store", hint=fill)
    state = state_of(store.directory / DATABASE) if place.own else "sound"
    if state in _FAULTS:
        hint = f"{replay} brings it up to date" if state == "outdated" else fill
        raise PrerequisiteError(f"the MLflow store of {store.directory} {_FAULTS[state]}", hint=hint)
    here = database_uri(store.directory) if place.own else place.uri
    behind = read_notes(store.directory)[TRACKER].behind
    return Dashboard(store.directory, replace(place, uri=here), moved=place.uri != here, behind=behind)


def choose_port(wanted: int | None, host: str = HOST) -> int:
    """The wanted port; if there is none 5000, or any free port if that is taken.

    Raises:
        PrerequisiteError: The wanted port is taken.
    """
    if _is_free(host, wanted or PORT):
        return wanted or PORT
    if wanted is not None:
        raise PrerequisiteError(f"port {wanted} of {host} is taken", hint="leave out --port to get a free one")
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(dashboard: Dashboard, port: int, host: str = HOST) -> Iterator[subprocess.Popen[bytes]]:
    """Run an MLflow server on a sweep's own store, and end it afterwards.

    Raises:
        PrerequisiteError: The port is taken, so another server would answer; or this one ended at once or does not
            answer, and its log says why.
    """
    choose_port(port, host)
    log = dashboard.directory / "logs" / "mlflow-ui.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", dashboard.place.uri, "--workers", "1"]
    # jobs bring a dozen helper processes along, which a page that only shows runs does not need
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=dashboard.directory,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the server
        )
        try:
            _wait(process, f"http://{host}:{port}", log)
            yield process
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PrerequisiteError(f"the MLflow server ended with code {process.returncode}", hint=f"see {log}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise PrerequisiteError(f"the MLflow server does not answer after {START_S:g} s", hint=f"see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server with its workers: on POSIX they have a process group of their own."""
    for hard in (False, True):
        try:
            if _POSIX:
                os.killpg(process.pid, signal.SIGKILL if hard else signal.SIGTERM)
            else:
                (process.kill if hard else process.terminate)()
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=10.0)
            break
        except subprocess.TimeoutExpired:
            continue


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        if _POSIX:  # elsewhere it would take a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
