"""What every executor with workers has in common: who gets which cell, and what happens when a worker dies.

A *crew* hires workers and carries messages: processes of this machine, Ray actors, Slurm jobs. The rules are here:

- A free worker gets the next cell whose reference has ended, and with it others that can share its work.
- Where a worker dies with several cells, those that are not done are tried in two halves.
- The cell of a dead worker goes to another one, `MAX_ATTEMPTS` times in all; then it is set aside as failed, because
  it is likely to be what kills them. Where the cause was too little memory, the next attempt has smaller batches.
- A worker that dies before it is ready is no cell's fault. A slot where that keeps happening is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.executors import Began, Ended, Outcome, Progress, Report, ready
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
    """One cell for one worker, or several that run together.

    Args:
        cell: The cell.
        attempt: Which attempt this is.
        batch_size: Samples per batch in place of the cell's own, for this attempt.
        beside: Further cells of the same company.
        suspect: A worker has died with it: never to be put together with others again.
    """

    cell: Cell
    attempt: int = 1
    batch_size: int | None = None
    beside: tuple[Cell, ...] = ()
    suspect: bool = False

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of the order."""
        return (self.cell, *self.beside)

    def singles(self) -> list[Order]:
        """One order for each cell."""
        return [replace(self, cell=cell, beside=()) for cell in self.cells]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        cells = [cell.to_json() for cell in self.cells]
        return {"cells": cells, "attempt": self.attempt, "batch_size": self.batch_size}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Order:
        """The inverse of `to_json`, for a worker."""
        first, *beside = map(Cell.from_json, data["cells"])
        return cls(first, data["attempt"], data["batch_size"], tuple(beside))

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
    """A worker ended its order; what came out of each cell, by its id, is on disk."""

    worker: str
    outcomes: Mapping[str, Outcome]


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


Message = Ready | Took | Progress | Finished | Died | DiskFailed


def message_of(worker: str, report: Mapping[str, Any]) -> Message:
    """What a worker said of itself as JSON: `ready`, `began`, `progress`, `ended` with the outcomes, or `disk`."""
    if report["report"] == "ready":
        return Ready(worker)
    if report["report"] == "began":
        return Took(worker)
    if report["report"] == "progress":
        return Progress(worker=worker, **{key: value for key, value in report.items() if key != "report"})
    if report["report"] == "ended":
        return Finished(worker, report["outcomes"])
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
    """Runs cells with a crew; see `tokenprune.sweep.executors.Executor`.

    Args:
        ledger: The sweep directory.
        crew: The workers.
        share: Cells that one worker may be given at once, to share work among them.
    """

    def __init__(self, ledger: Ledger, crew: Crew, share: int = 1) -> None:
        self._ledger = ledger
        self._crew = crew
        self._share = share
        self._hands: dict[str, _Hand] = {}
        self._queue: list[Order] = []
        self._waiting: dict[str, Cell] = {}
        self._stillbirths: dict[str, int] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; yields as they begin, advance and end. Closing the iterator stops all workers.

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
                hand.order = self._joined(self._queue.pop(place))
                self._crew.give(worker, hand.order)
                return

    def _joined(self, order: Order) -> Order:
        """The order with further cells of its company, as many as leave some for the other workers."""
        if order.suspect or order.beside:
            return order
        mates = [other for other in self._queue if not other.suspect and company(other.cell) == company(order.cell)]
        size = min(self._share, -(-(len(mates) + 1) // max(1, len(self._stillbirths))))
        beside = mates[: size - 1]
        for mate in beside:
            self._queue.remove(mate)
        return replace(order, beside=tuple(mate.cell for mate in beside))

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
            for cell in hand.order.cells:
                yield Began(cell.id, message.worker, hand.order.attempt)
        elif isinstance(message, Progress) and message.cell_id in self._waiting:  # not of a cell that has ended since
            yield message
        elif hand.order is not None and isinstance(message, Finished):
            order, hand.order, hand.began = hand.order, None, False
            for cell in order.cells:
                del self._waiting[cell.id]
                yield Ended(cell.id, message.outcomes[cell.id])

    def _bury(self, hand: _Hand, death: Died) -> Iterator[Report]:
        """Decide what becomes of a dead worker's cells."""
        if not hand.ready:
            self._note_stillbirth(hand.slot, death)
            return
        order = hand.order
        if order is None:
            return
        if not hand.began:
            self._queue[:0] = order.singles()
            return
        left = [each for each in order.singles() if self._ledger.state(each.cell.id) != "done"]
        for cell in order.cells:  # it died between the last write and saying so
            if all(cell != each.cell for each in left):
                del self._waiting[cell.id]
                yield Ended(cell.id, "done")
        if len(left) > 1:
            self._queue += _halves([each.cell for each in left], order)
        elif left:
            yield from self._once_more(left[0], death)

    def _once_more(self, order: Order, death: Died) -> Iterator[Report]:
        """Try a cell again, or set it aside."""
        smaller = order.smaller() if death.out_of_memory else None
        if order.attempt < MAX_ATTEMPTS and (smaller or not death.out_of_memory):
            again = Order(order.cell, order.attempt + 1, smaller or order.batch_size, suspect=True)
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


def company(cell: Cell) -> tuple[object, ...]:
    """Cells of one company ask the same questions of the same model, and can share what is the same for all."""
    model = (cell.model, cell.model_digest, cell.dtype, cell.attention)
    task = (cell.task, cell.task_version, cell.task_digest, cell.samples, cell.batch_size, cell.max_new_tokens)
    return (*model, *task, cell.reference)


def companies(cells: Sequence[Cell], size: int) -> Iterator[tuple[Cell, ...]]:
    """The cells by company, in the order of their first ones, at most `size` together."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(company(cell), []).append(cell)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield tuple(group[start : start + size])


def _halves(cells: Sequence[Cell], order: Order) -> list[Order]:
    """Two orders in place of one whose worker died: so the cell that kills is found, and the others are not blamed."""
    middle = len(cells) // 2
    return [
        Order(first, order.attempt, order.batch_size, tuple(beside), suspect=True)
        for first, *beside in (cells[:middle], cells[middle:])
    ]


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
