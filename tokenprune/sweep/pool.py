"""The executor `local`: one long-lived worker process per device, replaced where it dies."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tokenprune.plugins import Host
from tokenprune.sweep.config import SweepConfig
from tokenprune.sweep.executors import Began, Ended, Report, ready
from tokenprune.sweep.ledger import Ledger
from tokenprune.sweep.plan import Cell

LOG_TAIL = 2000
"""Characters of a dead worker's log that go into its cell's error."""

GRACE_S = 5.0
"""Seconds that a worker gets to leave before it is killed."""


@dataclass
class _Worker:
    """One process and the cell that it has."""

    device: str
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    cell: Cell | None = None
    buffer: bytes = field(default=b"")

    @property
    def name(self) -> str:
        return f"{self.device}#{self.process.pid}"


class LocalPool:
    """Worker processes on this machine.

    A worker keeps its model between cells. Each device runs one cell at a time, so measurements are alone on it.
    Workers load plugins from the installed entry points, like any other process.
    """

    def __init__(self, ledger: Ledger, config: SweepConfig, host: Host) -> None:
        del host  # a worker makes its own: plugins do not travel between processes
        self._ledger = ledger
        self._devices = config.device
        self._overlays = config.overlays

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; see `tokenprune.sweep.executors.Executor`."""
        waiting = {cell.id: cell for cell in cells}
        queue = list(cells)
        workers: list[_Worker] = []
        with selectors.DefaultSelector() as selector:

            def hire(device: str) -> None:
                workers.append(self._start(device))
                selector.register(_pipe(workers[-1]), selectors.EVENT_READ, workers[-1])

            try:
                for device in self._devices[: len(queue)]:
                    hire(device)
                while waiting:
                    for worker in workers:
                        _feed(worker, queue, waiting)
                    for key, _ in selector.select():
                        worker = key.data
                        data = os.read(key.fd, 65536)
                        reports = list(_reports(worker, data) if data else self._bury(worker))
                        for report in reports:
                            if isinstance(report, Ended):
                                waiting.pop(report.cell_id, None)
                        if not data:
                            selector.unregister(key.fd)
                            workers.remove(worker)
                            if queue:
                                hire(worker.device)
                        for other in workers:  # before the reports go out: work goes on while a tracker writes
                            _feed(other, queue, waiting)
                        yield from reports
            finally:
                for worker in workers:
                    _stop(worker)

    def _start(self, device: str) -> _Worker:
        log = self._ledger.directory / "logs" / f"worker-{device.replace(':', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as stream:
            start = stream.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "tokenprune.sweep.remote", self._ledger.directory, device, str(self._overlays)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # the same modules as here
                start_new_session=True,  # Ctrl-C in a terminal goes to the parent only, which then stops the workers
            )
        return _Worker(device, process, log, start)

    def _bury(self, worker: _Worker) -> Iterator[Report]:
        """Record the cell that a dead worker had."""
        _stop(worker)
        code = worker.process.returncode
        cell, worker.cell = worker.cell, None
        if cell is None:
            return
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._ledger.write_error(
            cell,
            {
                "outcome": "failed",
                "type": "WorkerDied",
                "message": f"the worker process died with {cause}",
                "hint": f"the end of its log is below; all of it is in `{worker.log}`",
                "traceback": _tail(worker.log, worker.log_start),
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        yield Ended(cell.id, "failed")


def _feed(worker: _Worker, queue: list[Cell], waiting: Mapping[str, Cell]) -> None:
    """Hand the next cell that may begin to a free worker."""
    if worker.cell is not None:
        return
    for place, cell in enumerate(queue):
        if ready(cell, waiting):
            worker.cell = queue.pop(place)
            stream = worker.process.stdin
            assert stream is not None  # noqa: S101 - it was opened as a pipe
            with suppress(BrokenPipeError):  # it died just now; its closed output says so next
                stream.write(json.dumps(cell.to_json()).encode() + b"\n")
                stream.flush()
            return


def _reports(worker: _Worker, data: bytes) -> Iterator[Report]:
    """Whole lines of a worker's output as reports; the rest waits for more."""
    *lines, worker.buffer = (worker.buffer + data).split(b"\n")
    for line in lines:
        report = json.loads(line)
        if report["report"] == "began":
            yield Began(report["id"], worker.name)
        else:
            worker.cell = None
            yield Ended(report["id"], report["outcome"])


def _pipe(worker: _Worker) -> int:
    stream = worker.process.stdout
    assert stream is not None  # noqa: S101 - it was opened as a pipe
    return stream.fileno()


def _tail(path: Path, start: int) -> str:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read().decode(errors="replace")[-LOG_TAIL:]


def _stop(worker: _Worker) -> None:
    """Close the worker's input, which ends it, and do not wait for ever."""
    for stream in (worker.process.stdin, worker.process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    try:
        worker.process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()
