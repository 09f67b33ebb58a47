"""What every executor with workers has in common: who gets which cell, and what happens when a worker dies.

A *crew* hires workers and carries messages (`worker_pool.py`): processes of this machine, Ray actors, Slurm
jobs. The rules are here:

- A free worker gets the next cell whose reference was answered, and with it others that can share its work.
- A cell's questions are asked first. Where its cost is to be measured, that is an order of its own, and nothing else
  runs at the same place meanwhile.
- Where a worker dies with several cells, those that are not done are tried in two halves.
- The cell of a dead worker goes to another one, `MAX_ATTEMPTS` times in all; then it is set aside as failed, because
  it is likely to be what kills them; where measuring did it, its answers stay. Where the cause was too little memory,
  the next attempt has smaller batches.
- A worker that dies before it begins anything is no cell's fault. A slot where that keeps happening is given up.
- Nor is it one where a queue takes a worker away, or a node is lost: its cells go on elsewhere, as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from tokenprune.cell import Cell, Outcome, Phase, canonical
from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.executors.executor import ready
from tokenprune.sweep.executors.worker_pool import Crew
from tokenprune.sweep.messages import (
    Answered,
    Began,
    Died,
    DiskFailed,
    Ended,
    Finished,
    Message,
    Order,
    Progress,
    Ready,
    Report,
    Took,
)
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.result_store import SweepStore

MAX_ATTEMPTS = 3
"""Workers that a cell may take along before it is set aside."""

MAX_STILLBIRTHS = 5
"""Workers in a row that may die in one slot before they begin anything."""

MAX_MOVES = 20
"""Workers that a cell may lose without a try of its own: to a queue's time limit, to a more urgent job, to a node."""


@dataclass
class _Hand:
    """One worker, as the dispatcher sees it."""

    slot: str
    ready: bool = False
    order: Order | None = None
    began: bool = False
    proved: bool = False
    """It has begun an order since it was hired."""


class Dispatcher:
    """Runs cells with a crew; see `tokenprune.sweep.executors.executor.Executor`.

    Args:
        store: The sweep directory.
        crew: The workers.
        share: Cells that one worker may be given at once, to share work among them.
    """

    def __init__(self, store: SweepStore, crew: Crew, share: int = 1) -> None:
        self._store = store
        self._crew = crew
        self._share = share
        self._hands: dict[str, _Hand] = {}
        self._queue: list[Order] = []
        self._waiting: dict[str, Cell] = {}
        self._unanswered: set[str] = set()
        self._stillbirths: dict[str, int] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; yields as they begin, advance and end. Closing the iterator stops all workers.

        Raises:
            PrerequisiteError: No worker can be started.
            StorageError: A worker cannot write to the sweep directory.
        """
        self._waiting = {cell.id: cell for cell in cells}
        self._queue = [Order(cell, part=next_part(self._store, cell)) for cell in cells]
        self._unanswered = {order.cell.id for order in self._queue if order.part == "answers"}
        try:
            self._stillbirths = dict.fromkeys(self._crew.slots(), 0)
            self._staff()
            while self._waiting:
                reports = [report for message in self._crew.listen() for report in self._take(message)]
                self._staff(costs=False)  # before the reports go out: questions are asked while somebody reads them
                yield from reports
                self._staff()  # and costs are measured when they were read: what is done with them is work, too
        finally:
            self._crew.dismiss()

    def _staff(self, *, costs: bool = True) -> None:
        """Hand out what can begin, costs or only questions, and hire where there is a slot and work for it."""
        for worker, hand in self._hands.items():
            self._feed(worker, hand, costs)
        busy = {hand.slot for hand in self._hands.values()}
        for slot in self._stillbirths:
            idle = sum(1 for hand in self._hands.values() if hand.order is None)
            if slot not in busy and len(self._queue) > idle:
                self._hands[self._crew.hire(slot)] = _Hand(slot)

    def _feed(self, worker: str, hand: _Hand, costs: bool) -> None:
        if hand.order is not None or not hand.ready:
            return
        for number, order in enumerate(self._queue):
            if self._may_begin(order, hand.slot):
                if order.part == "cost" and not costs:
                    return
                hand.order = self._joined(self._queue.pop(number))
                self._crew.give(worker, hand.order)
                return

    def _may_begin(self, order: Order, slot: str) -> bool:
        """Whether what an order needs is there; a measurement wants its place for itself, and gets it."""
        place = self._crew.place(slot)
        beside = [
            hand.order
            for hand in self._hands.values()
            if hand.order is not None and self._crew.place(hand.slot) == place
        ]
        if order.part == "cost":
            return not beside
        return ready(order.cell, self._unanswered) and all(each.part != "cost" for each in beside)

    def _joined(self, order: Order) -> Order:
        """The order with further cells of its company, as many as leave some for the other workers."""
        if order.suspect or order.beside or order.part == "cost":
            return order
        mates = [
            other
            for other in self._queue
            if not other.suspect and other.part == order.part and company(other.cell) == company(order.cell)
        ]
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
        elif hand.order is not None and isinstance(message, Took):
            hand.began = hand.proved = True
            self._stillbirths[hand.slot] = 0
            for cell in hand.order.cells:
                yield Began(cell.id, message.worker, hand.order.attempt, hand.order.part)
        elif isinstance(message, Progress) and message.cell_id in self._waiting:  # not of a cell that has ended since
            yield message
        elif hand.order is not None and isinstance(message, Finished):
            order, hand.order, hand.began = hand.order, None, False
            for cell in order.cells:
                outcome = message.outcomes[cell.id]
                if outcome != "answered":
                    yield self._ended(cell, outcome)
            yield from self._measure([cell for cell in order.cells if message.outcomes[cell.id] == "answered"])

    def _ended(self, cell: Cell, outcome: Outcome) -> Ended:
        del self._waiting[cell.id]
        self._unanswered.discard(cell.id)
        return Ended(cell.id, outcome)

    def _measure(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Cells were asked: their costs come next, before further questions where a worker has its place for itself."""
        self._queue[:0] = [Order(cell, part="cost") for cell in cells]
        for cell in cells:
            self._unanswered.discard(cell.id)
            yield Answered(cell.id)

    def _bury(self, hand: _Hand, death: Died) -> Iterator[Report]:
        """Decide what becomes of a dead worker's cells."""
        order = hand.order
        if order is not None and not hand.began:
            self._queue[:0] = order.singles()
        if not hand.proved:
            self._note_stillbirth(hand.slot, death)
        if order is None or not hand.began:
            return
        done = [cell for cell in order.cells if self._store.state(cell.id) == "done"]
        for cell in done:  # it died between the last write and saying so
            yield self._ended(cell, "done")
        left = [each for each in order.singles() if each.cell not in done]
        if order.part == "answers":
            asked = [each.cell for each in left if next_part(self._store, each.cell) == "cost"]
            yield from self._measure(asked)
            left = [each for each in left if each.cell not in asked]
        if left and death.blameless and order.moves < MAX_MOVES:
            beside = tuple(each.cell for each in left[1:])
            self._queue.insert(0, replace(left[0], beside=beside, moves=order.moves + 1))
        elif len(left) > 1:
            self._queue += _halves([each.cell for each in left], order)
        elif left:
            yield from self._once_more(left[0], death)

    def _once_more(self, order: Order, death: Died) -> Iterator[Report]:
        """Try a cell again, or set it aside."""
        smaller = order.smaller() if death.out_of_memory else None
        if order.attempt < MAX_ATTEMPTS and (smaller or not death.out_of_memory):
            batch_size = smaller or order.batch_size
            again = replace(order, attempt=order.attempt + 1, batch_size=batch_size, suspect=True)
            # other cells wait for a reference; anything else may be what killed the worker, and comes last
            self._queue.insert(0 if order.cell.reference is None else len(self._queue), again)
        elif order.part == "cost" and (answers := self._store.answers(order.cell.id)) is not None:
            self._store.write_result(order.cell, {**answers, "cost": _unmeasured(order, death)})
            yield self._ended(order.cell, "done")
        else:
            self._store.write_error(order.cell, _set_aside(order, death))
            yield self._ended(order.cell, "failed")

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
                hint=f"what the workers printed is in `{self._store.directory / 'logs'}`",
            )


def next_part(store: SweepStore, cell: Cell) -> Phase:
    """What of a cell is to be run next: its questions, or its measurement where they were asked."""
    return "cost" if cell.efficiency and store.answers(cell.id) is not None else "answers"


def company(cell: Cell) -> tuple[object, ...]:
    """Cells of one company ask the same questions of the same model, and can share what is the same for all."""
    model = (cell.model, cell.model_digest, cell.dtype, cell.attention)
    task = (cell.task, cell.task_version, cell.task_digest, canonical(dict(cell.task_options)), cell.samples)
    return (*model, *task, cell.batch_size, cell.max_new_tokens, cell.reference)


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


def _unmeasured(order: Order, death: Died) -> dict[str, Any]:
    """In place of a cost."""
    return {"error": _deaths(order, death), "hint": "its answers are kept; the end of the worker's log is in `logs`"}


def _deaths(order: Order, death: Died) -> str:
    count = f"{order.attempt} workers died in this cell, the last" if order.attempt > 1 else "the worker died"
    return f"{count} with {death.cause}"


def _set_aside(order: Order, death: Died) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "type": "WorkerDied",
        "message": _deaths(order, death),
        "hint": "the cell is set aside; the end of the worker's log is below",
        "traceback": death.log,
        "attempts": order.attempt,
        "batch_size": order.batch_size or order.cell.batch_size,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
