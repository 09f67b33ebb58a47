"""The rules of every executor: which worker gets which cells, and what happens when a worker dies.

A worker pool (`worker_pool.py`) starts the workers: processes of this machine, Ray actors or Slurm jobs. The rules:

- A free worker gets the first cell whose reference is evaluated, with other cells of its batch group.
- A cell is evaluated first. If its cost is to be measured, that is an assignment of its own, and nothing else runs on
  the same device meanwhile.
- If a worker dies with several cells, the unfinished ones are tried in two halves, and no attempt is counted.
- If a worker dies with one cell, another worker tries it, `MAX_ATTEMPTS` times in all. Then the cell has failed, or, if
  it was being measured, keeps its answers without a cost. After too little memory the next attempt has smaller batches.
- Failures before a worker begins its first assignment count for the slot, not for a cell. A slot with too many of them
  is given up.
- If a queue preempts a worker or its node is lost, no attempt is counted; its cells are rescheduled unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tokenprune.cells.cell import Cell, Outcome, Phase
from tokenprune.cells.events import CellEvaluated, CellProgress, CellStarted
from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.executors.worker_pool import WorkerPool
from tokenprune.sweep.messages import (
    Assignment,
    CellFinished,
    ExecutorEvent,
    StorageFailed,
    WorkerDied,
    WorkerMessage,
    WorkerReady,
)
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.result_store import SweepStore

MAX_ATTEMPTS = 3
"""Workers that may die with a cell before the cell has failed."""

MAX_FAILED_STARTS = 5
"""Workers in a row that may die in one slot before they begin an assignment."""

MAX_PREEMPTIONS = 20
"""Workers that a queue or a lost node may take from a cell before their deaths count as attempts."""


@dataclass
class WorkerState:
    """One worker, as the scheduler sees it.

    Args:
        slot: Where it runs.
        ready: It waits for an assignment.
        assignment: What it was given last and has not finished.
        begun: It has begun its assignment.
        proven: It has begun some assignment since it was started.
        evaluated: Cells of the assignment that are evaluated and whose costs are to be measured.
    """

    slot: str
    ready: bool = False
    assignment: Assignment | None = None
    begun: bool = False
    proven: bool = False
    evaluated: list[Cell] = field(default_factory=list)


class Scheduler:
    """Runs cells on a pool of workers; an executor is a scheduler with a pool of its own.

    Args:
        store: The sweep directory.
        pool: The workers.
        share: How many cells a worker may evaluate together.
    """

    def __init__(self, store: SweepStore, pool: WorkerPool, share: int = 1) -> None:
        self._store = store
        self._pool = pool
        self._share = share
        self._workers: dict[str, WorkerState] = {}
        self._queue: list[Assignment] = []
        self._unfinished: set[str] = set()
        self._unevaluated: set[str] = set()
        self._failed_starts: dict[str, int] = {}
        """Workers in a row that failed to start, for every slot that is not given up."""

    def run(self, cells: Sequence[Cell]) -> Iterator[ExecutorEvent]:
        """Run the cells; yields what happens to them. Closing the iterator stops all workers.

        Raises:
            PrerequisiteError: No worker can be started.
            StorageError: A worker cannot write to the sweep directory.
        """
        self._unfinished = {cell.id for cell in cells}
        self._queue = [Assignment((cell,), next_phase(self._store, cell)) for cell in cells]
        self._unevaluated = {each.cells[0].id for each in self._queue if each.phase == "answers"}
        try:
            self._failed_starts = dict.fromkeys(self._pool.slots(), 0)
            self._assign_work()
            while self._unfinished:
                events = [event for name, message in self._pool.poll() for event in self._handle(name, message)]
                # cells are evaluated while the caller handles the events; costs are measured when it has done so
                self._assign_work(costs=False)
                yield from events
                self._assign_work()
        finally:
            self._pool.shutdown()

    # --- assignments --------------------------------------------------------------------------------------------------

    def _assign_work(self, *, costs: bool = True) -> None:
        """Give ready workers what can begin, and start workers in free slots if there is work for them."""
        for name, worker in self._workers.items():
            if worker.ready and (assignment := self._next_assignment(worker.slot, costs)) is not None:
                worker.ready, worker.assignment, worker.begun = False, assignment, False
                self._pool.submit(name, assignment)
        occupied = {worker.slot for worker in self._workers.values()}
        for slot in self._failed_starts:
            idle = sum(worker.assignment is None for worker in self._workers.values())
            if slot not in occupied and len(self._queue) > idle:
                self._workers[self._pool.start(slot)] = WorkerState(slot)

    def _next_assignment(self, slot: str, costs: bool) -> Assignment | None:
        """Take the first assignment that can begin in a slot from the queue, with co-scheduled cells."""
        for number, assignment in enumerate(self._queue):
            if self._can_begin(assignment, slot):
                if assignment.phase == "cost" and not costs:
                    return None
                return self._with_group(self._queue.pop(number))
        return None

    def _can_begin(self, assignment: Assignment, slot: str) -> bool:
        """Whether the reference is evaluated and the device is free; a measurement wants the device for itself."""
        device = self._pool.device_of(slot)
        running = [
            worker.assignment.phase
            for worker in self._workers.values()
            if worker.assignment is not None and self._pool.device_of(worker.slot) == device
        ]
        if assignment.phase == "cost":
            return not running
        return assignment.cells[0].reference not in self._unevaluated and "cost" not in running

    def _with_group(self, assignment: Assignment) -> Assignment:
        """The assignment with further cells of its batch group, but a fair share of them for every slot."""
        if not _can_join(assignment):
            return assignment
        (cell,) = assignment.cells
        group = [
            other for other in self._queue if _can_join(other) and batch_group(other.cells[0]) == batch_group(cell)
        ]
        size = min(self._share, -(-(len(group) + 1) // max(1, len(self._failed_starts))))
        joined = group[: size - 1]
        for other in joined:
            self._queue.remove(other)
        return replace(assignment, cells=(cell, *(other.cells[0] for other in joined)))

    # --- messages -----------------------------------------------------------------------------------------------------

    def _handle(self, name: str, message: WorkerMessage | WorkerDied) -> Iterator[ExecutorEvent]:
        worker = self._workers[name]
        if isinstance(message, StorageFailed):
            raise StorageError(message.message, hint=message.hint)
        if isinstance(message, WorkerDied):
            del self._workers[name]
            yield from self._on_worker_death(worker, message)
        elif isinstance(message, WorkerReady):
            worker.ready, worker.assignment = True, None
            self._queue_costs(worker)
        elif isinstance(message, CellStarted):
            worker.begun = worker.proven = True
            self._failed_starts[worker.slot] = 0
            yield replace(message, worker=name)
        elif isinstance(message, CellProgress):
            if message.cell.id in self._unfinished:
                yield replace(message, worker=name)
        elif isinstance(message, CellEvaluated):
            yield self._evaluated(worker, message.cell)
        else:
            yield self._finished(message.cell, message.outcome)

    def _evaluated(self, worker: WorkerState, cell: Cell) -> CellEvaluated:
        worker.evaluated.append(cell)
        return CellEvaluated(cell)

    def _finished(self, cell: Cell, outcome: Outcome) -> CellFinished:
        self._unfinished.discard(cell.id)
        self._unevaluated.discard(cell.id)
        return CellFinished(cell, outcome)

    def _queue_costs(self, worker: WorkerState) -> None:
        """Measure what a worker has evaluated, before anything else of its device begins."""
        self._queue[:0] = [Assignment((cell,), "cost") for cell in worker.evaluated]
        self._unevaluated -= {cell.id for cell in worker.evaluated}
        worker.evaluated = []

    # --- deaths -------------------------------------------------------------------------------------------------------

    def _on_worker_death(self, worker: WorkerState, death: WorkerDied) -> Iterator[ExecutorEvent]:
        """Decide how the cells of a dead worker go on."""
        assignment = worker.assignment
        if not worker.proven:
            self._count_failed_start(worker.slot, death)
        if assignment is None:
            return
        if not worker.begun:
            self._queue[:0] = assignment.split()
            return
        left = []
        for cell in assignment.cells:
            if cell.id not in self._unfinished or cell in worker.evaluated:
                continue
            if self._store.state(cell.id) == "done":  # it died between the last write and its message
                yield self._finished(cell, "done")
            elif assignment.phase == "answers" and next_phase(self._store, cell) == "cost":
                yield self._evaluated(worker, cell)
            else:
                left.append(cell)
        self._queue_costs(worker)
        if left:
            yield from self._reschedule(replace(assignment, cells=tuple(left)), death)

    def _reschedule(self, assignment: Assignment, death: WorkerDied) -> Iterator[ExecutorEvent]:
        """Queue what a dead worker has left, or set its only cell aside."""
        cells, attempt = assignment.cells, assignment.attempt
        if death.preempted and assignment.preemptions < MAX_PREEMPTIONS:
            self._queue.insert(0, replace(assignment, preemptions=assignment.preemptions + 1))
            return
        if len(cells) > 1:  # so the cell that kills its workers is found, and no attempt is counted for the others
            middle = len(cells) // 2
            halves = (cells[:middle], cells[middle:])
            self._queue += [replace(assignment, cells=half, closed=True, preemptions=0) for half in halves]
            return
        smaller = assignment.smaller_batch_size() if death.out_of_memory else None
        if attempt < MAX_ATTEMPTS and (smaller is not None or not death.out_of_memory):
            batch_size = smaller or assignment.batch_size
            again = replace(assignment, attempt=attempt + 1, batch_size=batch_size, closed=True)
            # other cells wait for a reference; anything else may kill its next worker, too, and comes last
            self._queue.insert(0 if cells[0].reference is None else len(self._queue), again)
        else:
            yield self._set_aside(assignment, death)

    def _set_aside(self, assignment: Assignment, death: WorkerDied) -> CellFinished:
        """End a cell that keeps killing its workers: without a cost if it was being measured, and else as failed."""
        (cell,) = assignment.cells
        attempts = assignment.attempt
        dead = f"{attempts} workers died in this cell, the last" if attempts > 1 else "the worker died"
        message = f"{dead} with {death.cause}"
        answers = self._store.answers(cell.id) if assignment.phase == "cost" else None
        if answers is not None:
            cost = {"error": message, "hint": "its answers are kept; the end of the worker's log is in `logs`"}
            self._store.write_result(cell, {**answers, "cost": cost})
            return self._finished(cell, "done")
        error = {
            "outcome": "failed",
            "type": "WorkerDied",
            "message": message,
            "hint": "the cell is set aside; the end of the worker's log is below",
            "traceback": death.log,
            "attempts": attempts,
            "batch_size": assignment.samples_per_batch,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._store.write_error(cell, error)
        return self._finished(cell, "failed")

    def _count_failed_start(self, slot: str, death: WorkerDied) -> None:
        self._failed_starts[slot] += 1
        if self._failed_starts[slot] < MAX_FAILED_STARTS:
            return
        del self._failed_starts[slot]
        if not self._failed_starts:
            last = death.log.strip().splitlines()[-1:]
            raise PrerequisiteError(
                f"no worker can be started: the last one died with {death.cause}"
                + "".join(f" ({line})" for line in last),
                hint=f"what the workers printed is in `{self._store.directory / 'logs'}`",
            )


def next_phase(store: SweepStore, cell: Cell) -> Phase:
    """The phase that a cell needs next: `cost` if it is evaluated and to be measured."""
    return "cost" if cell.efficiency and store.answers(cell.id) is not None else "answers"


def _can_join(assignment: Assignment) -> bool:
    """Whether a cell may be evaluated with others; the cells of a group that was given out stay as they are."""
    return not assignment.closed and assignment.phase == "answers" and len(assignment.cells) == 1


def batch_group(cell: Cell) -> tuple[object, ...]:
    """What cells have in common that can be evaluated together: the model, the samples and their batches."""
    return (*cell.model_key, *cell.task_key, cell.samples, cell.batch_size, cell.max_new_tokens, cell.reference)
