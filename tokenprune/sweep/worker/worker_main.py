"""The main loop of every worker, and the worker process of the executor `local`.

`python -m tokenprune.sweep.worker.worker_main FD` is such a process: FD is its end of a pipe. Over it come the
settings, then the assignments; messages go back. What libraries print goes to the worker's log.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from tokenprune.cells.events import CellProgress, CellStarted
from tokenprune.sweep.messages import Assignment, StorageFailed, WorkerMessage, WorkerReady
from tokenprune.sweep.store.atomic_io import StorageError

if TYPE_CHECKING:
    from tokenprune.sweep.worker.cell_runner import CellRunner


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker needs to start.

    Args:
        directory: The sweep directory, as the worker's machine sees it.
        device: Torch device, or `auto`.
        overlays: Samples per cell whose kept tokens are stored.
        token: The right to write to the directory, checked before every write.
    """

    directory: str
    device: str
    overlays: int
    token: str

    def make_runner(self) -> CellRunner:
        """The runner of this worker, on a device that works."""
        # imported here, so that a process that only starts workers needs no torch
        from tokenprune.evaluation.machine.devices import try_device
        from tokenprune.evaluation.model_cache import ModelCache
        from tokenprune.plugins import load_host
        from tokenprune.sweep.store.result_store import SweepStore
        from tokenprune.sweep.worker.cell_runner import CellRunner

        cache = ModelCache(load_host(), self.device)
        try_device(cache.device)
        return CellRunner(SweepStore(self.directory, token=self.token), cache, overlays=self.overlays)


def run_worker(
    settings: WorkerSettings, receive: Callable[[], Assignment | None], send: Callable[[WorkerMessage], None]
) -> None:
    """Run assignments one after the other with one runner, which keeps its model.

    Args:
        settings: What the worker works with.
        receive: Waits for the next assignment; `None` ends the worker.
        send: Takes a message to the scheduler.
    """
    runner = settings.make_runner()
    send(WorkerReady())
    while (assignment := receive()) is not None:
        for message in run_assignment(runner, assignment):
            if isinstance(message, CellProgress):
                with suppress(OSError, StorageError):  # no cell fails for its progress
                    send(message)
            else:
                send(message)


def run_assignment(runner: CellRunner, assignment: Assignment) -> Iterator[WorkerMessage]:
    """Run an assignment to its end; yields what the scheduler needs to hear, `WorkerReady` last."""
    for cell in assignment.cells:
        yield CellStarted(cell, attempt=assignment.attempt, phase=assignment.phase)
    try:
        yield from runner.run(assignment)
    except StorageError as error:
        yield StorageFailed(error.message, error.hint)
    yield WorkerReady()


def main(descriptor: str) -> None:
    """Work until the other end of the pipe is closed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    connection = Connection(int(descriptor))
    settings: WorkerSettings = connection.recv()
    assignments: queue.SimpleQueue[Assignment] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, assignments), daemon=True).start()
    run_worker(settings, assignments.get, connection.send)


def _receive(connection: Connection, assignments: queue.SimpleQueue[Assignment]) -> None:
    """Pass assignments on; a closed pipe means that the scheduler stopped or died, also in the middle of a cell."""
    with suppress(EOFError, OSError):
        while True:
            assignments.put(connection.recv())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
