"""What every executor with workers has in common: who gets which cell, and what happens when a worker dies.

A *crew* hires workers and carries messages: processes of this machine, Ray actors, Slurm jobs. The rules are here:

- A free worker gets the next cell whose reference has ended.
- The cell of a dead worker goes to another one, `MAX_ATTEMPTS` times in all; then it is set aside as failed, because
  it is likely to be what kills them. Where the cause was too little memory, the next attempt has smaller batches.
- A worker that dies before it is ready is no cell's fault. A slot where that keeps happening is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.executors import Began, Ended, Outcome, Report, ready
from tokenprune.sweep.files import StorageError
from tokenprune.sweep.ledger import Ledger
from tokenprune.sweep.plan import Cell

MAX_ATTEMPTS = 3
"""Workers that a cell may take along before it is set aside."""

MAX_STILLBIRTHS = 5
"""Workers in a row that may die in one slot before they are ready."""

SMALLER = 4
"""How many times smaller the batches of an attempt after too little memory are."""


@dataclass(frozen=True, slots=True)
class Order:
    """One cell for one worker; a `batch_size` replaces the cell's own for this attempt."""

    cell: Cell
    attempt: int = 1
    batch_size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"cell": self.cell.to_json(), "attempt": self.attempt, "batch_size": self.batch_size}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Order:
        """The inverse of `to_json`."""
        return cls(Cell.from_json(data["cell"]), data["attempt"], data["batch_size"])

    def smaller(self) -> int | None:
        """The batch size of an attempt after too little memory; `None` where it was smaller already, or cannot be."""
        if self.batch_size is not None or self.cell.batch_size == 1:
            return None
        return max(1, self.cell.batch_size // SMALLER)


@dataclass(frozen=True, slots=True)
class Ready:
    """A new worker can be given orders."""

    worker: str


@dataclass(frozen=True, slots=True)
class Took:
    """A worker began the order that it was given."""

    worker: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker ended its order; what came out is on disk."""

    worker: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone.

    Args:
        worker: Which.
        cause: How, for people (`signal SIGKILL`).
        log: The end of what it printed.
        out_of_memory: True where it is known that there was too little memory.
    """

    worker: str
    cause: str
    log: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """A worker cannot write to the sweep directory."""

    worker: str
    message: str
    hint: str


Message = Ready | Took | Finished | Died | DiskFailed


def message_of(worker: str, report: Mapping[str, Any]) -> Message:
    """What a worker said of itself as JSON: `ready`, `began`, `ended` with its outcome, or `disk`."""
    if report["report"] == "ready":
        return Ready(worker)
    if report["report"] == "began":
        return Took(worker)
    if report["report"] == "ended":
        return Finished(worker, report["outcome"])
    return DiskFailed(worker, report["message"], report["hint"])


class Crew(Protocol):
    """Hires workers and carries messages; a worker has at most one order at a time."""

    def slots(self) -> Sequence[str]:
        """Where workers may run, one at a time each: the devices, usually."""
        ...

    def hire(self, slot: str) -> str:
        """Start a worker and return its name, which no other worker ever had."""
        ...

    def give(self, worker: str, order: Order) -> None:
        """Hand an order to a ready worker that has none; never fails (`listen` tells of a dead worker)."""
        ...

    def listen(self) -> Iterable[Message]:
        """Wait until something happened, or for a moment; what happened, in order."""
        ...

    def dismiss(self) -> None:
        """Stop all workers and wait until they are gone."""
        ...


@dataclass
class _Hand:
    """One worker, as the dispatcher sees it."""

    slot: str
    ready: bool = False
    order: Order | None = None
    began: bool = False


class Dispatcher:
    """Runs cells with a crew; see `tokenprune.sweep.executors.Executor`."""

    def __init__(self, ledger: Ledger, crew: Crew) -> None:
        self._ledger = ledger
        self._crew = crew
        self._hands: dict[str, _Hand] = {}
        self._queue: list[Order] = []
        self._waiting: dict[str, Cell] = {}
        self._stillbirths: dict[str, int] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; yields as they begin and end. Closing the iterator stops all workers.

        Raises:
            PrerequisiteError: No worker can be started.
            StorageError: A worker cannot write to the sweep directory.
        """
        self._waiting = {cell.id: cell for cell in cells}
        self._queue = [Order(cell) for cell in cells]
        try:
            self._stillbirths = dict.fromkeys(self._crew.slots(), 0)
            self._staff()
            while self._waiting:
                reports = [report for message in self._crew.listen() for report in self._take(message)]
                self._staff()  # before the reports go out: work goes on while somebody reads them
                yield from reports
        finally:
            self._crew.dismiss()

    def _staff(self) -> None:
        """Hand out what can begin, and hire where there is a slot and work for it."""
        for worker, hand in self._hands.items():
            self._feed(worker, hand)
        busy = {hand.slot for hand in self._hands.values()}
        for slot in self._stillbirths:
            idle = sum(1 for hand in self._hands.values() if hand.order is None)
            if slot not in busy and len(self._queue) > idle:
                self._hands[self._crew.hire(slot)] = _Hand(slot)

    def _feed(self, worker: str, hand: _Hand) -> None:
        if hand.order is not None or not hand.ready:
            return
        for place, order in enumerate(self._queue):
            if ready(order.cell, self._waiting):
                hand.order = self._queue.pop(place)
                self._crew.give(worker, hand.order)
                return

    def _take(self, message: Message) -> Iterator[Report]:
        hand = self._hands[message.worker]
        if isinstance(message, DiskFailed):
            raise StorageError(message.message, hint=message.hint)
        if isinstance(message, Died):
            del self._hands[message.worker]
            yield from self._bury(hand, message)
        elif isinstance(message, Ready):
            hand.ready = True
            self._stillbirths[hand.slot] = 0
        elif hand.order is not None and isinstance(message, Took):
            hand.began = True
            yield Began(hand.order.cell.id, message.worker, hand.order.attempt)
        elif hand.order is not None and isinstance(message, Finished):
            order, hand.order, hand.began = hand.order, None, False
            del self._waiting[order.cell.id]
            yield Ended(order.cell.id, message.outcome)

    def _bury(self, hand: _Hand, death: Died) -> Iterator[Report]:
        """Decide what becomes of a dead worker's cell."""
        if not hand.ready:
            self._note_stillbirth(hand.slot, death)
            return
        order = hand.order
        if order is None:
            return
        if not hand.began:
            self._queue.insert(0, order)
            return
        state = self._ledger.state(order.cell.id)
        smaller = order.smaller() if death.out_of_memory else None
        if state == "done":  # it died between the last write and saying so
            del self._waiting[order.cell.id]
            yield Ended(order.cell.id, "done")
        elif order.attempt < MAX_ATTEMPTS and (smaller or not death.out_of_memory):
            again = Order(order.cell, order.attempt + 1, smaller or order.batch_size)
            # other cells wait for a reference; anything else may be what killed the worker, and comes last
            self._queue.insert(0 if order.cell.reference is None else len(self._queue), again)
        else:
            self._ledger.write_error(order.cell, _set_aside(order, death))
            del self._waiting[order.cell.id]
            yield Ended(order.cell.id, "failed")

    def _note_stillbirth(self, slot: str, death: Died) -> None:
        self._stillbirths[slot] += 1
        if self._stillbirths[slot] < MAX_STILLBIRTHS:
            return
        del self._stillbirths[slot]
        if not self._stillbirths:
            last = death.log.strip().splitlines()[-1:]
            raise PrerequisiteError(
                f"no worker can be started: the last one died with {death.cause}"
                + "".join(f" ({line})" for line in last),
                hint=f"what the workers printed is in `{self._ledger.directory / 'logs'}`",
            )


def _set_aside(order: Order, death: Died) -> dict[str, Any]:
    count = f"{order.attempt} workers died in this cell, the last" if order.attempt > 1 else "the worker died"
    return {
        "outcome": "failed",
        "type": "WorkerDied",
        "message": f"{count} with {death.cause}",
        "hint": "the cell is set aside; the end of the worker's log is below",
        "traceback": death.log,
        "attempts": order.attempt,
        "batch_size": order.batch_size or order.cell.batch_size,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
