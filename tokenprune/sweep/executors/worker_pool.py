"""The lifetime of workers: a pool starts them, carries their messages, notices deaths and stops them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from tokenprune.sweep.messages import Assignment, StorageFailed, WorkerDied, WorkerMessage

LOG_TAIL = 2000
"""Characters of a dead worker's log that go into its cell's error."""


class Worker(ABC):
    """One running worker, seen from the scheduler's process; no other worker ever had its `name`."""

    name: str

    @abstractmethod
    def submit(self, assignment: Assignment) -> None:
        """Send an assignment; if the worker is dead, nothing happens."""

    @abstractmethod
    def messages(self) -> Sequence[WorkerMessage]:
        """What it has sent since the last call; does not wait."""

    @abstractmethod
    def death(self) -> WorkerDied | StorageFailed | None:
        """Why it is gone, or `None` while it lives."""

    @abstractmethod
    def stop(self) -> None:
        """Tell it to leave."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


class WorkerPool(ABC):
    """Workers of one kind, in slots; each has at most one assignment at a time.

    Attributes:
        pause_s: Seconds that `poll` waits if there are no messages.
        grace_s: Seconds that a worker gets to leave before it is killed.
    """

    pause_s = 0.02
    grace_s = 5.0

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    @abstractmethod
    def slots(self) -> Sequence[str]:
        """Where workers can run, one at a time each: usually the devices."""

    @abstractmethod
    def device_of(self, slot: str) -> str:
        """What the workers of several slots share; nothing else runs on it while a cost is measured."""

    @abstractmethod
    def launch(self, slot: str) -> Worker:
        """Start a worker in a slot; it may take a while until it is ready."""

    def start(self, slot: str) -> str:
        """Start a worker in a slot and return its name."""
        worker = self.launch(slot)
        self._workers[worker.name] = worker
        return worker.name

    def submit(self, name: str, assignment: Assignment) -> None:
        """Hand an assignment to a worker that is ready."""
        self._workers[name].submit(assignment)

    def poll(self) -> Sequence[tuple[str, WorkerMessage | WorkerDied]]:
        """The new messages of all workers, each with the worker's name; waits a moment if there are none."""
        found: list[tuple[str, WorkerMessage | WorkerDied]] = []
        for name, worker in list(self._workers.items()):
            death = worker.death()  # checked before the messages are read, so that none is lost
            found += [(name, message) for message in worker.messages()]
            if death is not None:
                del self._workers[name]
                found.append((name, death))
        if not found:
            time.sleep(self.pause_s)
        return found

    def shutdown(self) -> None:
        """Stop all workers and wait until they are gone."""
        for worker in self._workers.values():
            worker.stop()
        deadline = time.monotonic() + self.grace_s
        for worker in self._workers.values():
            while worker.death() is None and time.monotonic() < deadline:
                time.sleep(self.pause_s)
            if worker.death() is None:
                worker.kill()
        self._workers.clear()
