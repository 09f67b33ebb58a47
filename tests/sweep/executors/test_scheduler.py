"""The rules of the scheduler, with a pool whose workers do what a script says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.sweep.a_cell import CELL
from tokenprune.cells.cell import Cell, Outcome, Phase
from tokenprune.cells.events import CellEvaluated, CellProgress, CellStarted
from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.executors.scheduler import MAX_ATTEMPTS, MAX_FAILED_STARTS, MAX_PREEMPTIONS, Scheduler
from tokenprune.sweep.messages import (
    Assignment,
    CellFinished,
    ExecutorEvent,
    StorageFailed,
    WorkerDied,
    WorkerMessage,
    WorkerReady,
    message_from_json,
    message_to_json,
)
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.result_store import SweepStore

REFERENCE = replace(CELL, pruner="none", label="none", reference=None)
CELLS = [REFERENCE, *(replace(CELL, seed=seed, reference=REFERENCE.id) for seed in range(4))]

Message = WorkerMessage | WorkerDied
Behaviour = Callable[[Assignment], Sequence[Message]]


@dataclass
class ScriptedPool:
    """Workers that begin an assignment and then do what `behave` says; those that `unborn` names die before."""

    behave: Behaviour
    places: Sequence[str] = ("one", "two")
    unborn: Callable[[str], bool] = lambda worker: False
    shared: str = ""
    started: list[str] = field(default_factory=list)
    assigned: list[tuple[str, Assignment]] = field(default_factory=list)
    messages: list[tuple[str, Message]] = field(default_factory=list)
    stopped: bool = False

    @property
    def assignments(self) -> list[Assignment]:
        return [assignment for _, assignment in self.assigned]

    def slots(self) -> Sequence[str]:
        return self.places

    def device_of(self, slot: str) -> str:
        return self.shared or slot

    def start(self, slot: str) -> str:
        worker = f"{slot}#{len(self.started)}"
        self.started.append(worker)
        self.messages.append((worker, WorkerDied("no luck", "the log") if self.unborn(worker) else WorkerReady()))
        return worker

    def submit(self, worker: str, assignment: Assignment) -> None:
        self.assigned.append((worker, assignment))
        began = [CellStarted(cell, attempt=assignment.attempt, phase=assignment.phase) for cell in assignment.cells]
        self.messages += [(worker, message) for message in (*began, *self.behave(assignment))]

    def poll(self) -> Sequence[tuple[str, Message]]:
        assert self.messages, "nothing will ever happen again"
        return [self.messages.pop(0)]

    def shutdown(self) -> None:
        self.stopped = True


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(tmp_path / "sweep")
    made.open_sweep({"models": ["scenes"]}, CELLS)
    return made


def well(assignment: Assignment) -> Sequence[Message]:
    return [*(CellFinished(cell, "done") for cell in assignment.cells), WorkerReady()]


def run(store: SweepStore, pool: ScriptedPool, cells: Sequence[Cell] = CELLS, share: int = 1) -> list[ExecutorEvent]:
    events = list(Scheduler(store, pool, share).run(cells))
    assert pool.stopped
    return events


def outcomes(events: Sequence[ExecutorEvent]) -> dict[str, Outcome]:
    return {event.cell.id: event.outcome for event in events if isinstance(event, CellFinished)}


def test_every_cell_once_and_the_reference_first(store: SweepStore) -> None:
    pool = ScriptedPool(well)
    events = run(store, pool)
    assert events[:2] == [CellStarted(REFERENCE, "one#0"), CellFinished(REFERENCE, "done")]
    assert sorted(assignment.cells[0].id for assignment in pool.assignments) == sorted(cell.id for cell in CELLS)
    assert set(outcomes(events)) == {cell.id for cell in CELLS}
    assert pool.started == ["one#0", "two#1"]


def test_progress_is_passed_on_while_its_cell_runs(store: SweepStore) -> None:
    def behave(assignment: Assignment) -> Sequence[Message]:
        cell = assignment.cells[0]
        told = [CellProgress(cell, "", done, 2, 64.0, 3.5, 812.0) for done in (1, 2)]
        return [told[0], *well(assignment), told[1]]  # the second comes too late

    events = run(store, ScriptedPool(behave, places=("one",)))
    assert len(events) == 3 * len(CELLS)
    for began, progress, ended in zip(events[::3], events[1::3], events[2::3], strict=True):
        assert isinstance(began, CellStarted)
        assert progress == CellProgress(began.cell, began.worker, 1, 2, 64.0, 3.5, 812.0)
        assert isinstance(ended, CellFinished)


def test_a_dead_workers_cell_is_tried_by_another_worker(store: SweepStore) -> None:
    victim = CELLS[2]

    def behave(assignment: Assignment) -> Sequence[Message]:
        dies = assignment.cells[0] == victim and assignment.attempt < MAX_ATTEMPTS
        return [WorkerDied("signal SIGKILL")] if dies else well(assignment)

    pool = ScriptedPool(behave)
    events = run(store, pool)
    tried = [(worker, assignment.attempt) for worker, assignment in pool.assigned if assignment.cells[0] == victim]
    assert [attempt for _, attempt in tried] == [1, 2, 3]
    assert len({worker for worker, _ in tried}) == 3
    assert [event.attempt for event in events if isinstance(event, CellStarted) and event.cell.id == victim.id] == [
        1,
        2,
        3,
    ]
    assert outcomes(events)[victim.id] == "done"
    assert store.error(victim.id) is None


def test_a_cell_that_keeps_killing_is_set_aside(store: SweepStore) -> None:
    poison = CELLS[1]

    def behave(assignment: Assignment) -> Sequence[Message]:
        return [WorkerDied("signal SIGSEGV", "its last words")] if assignment.cells[0] == poison else well(assignment)

    events = run(store, ScriptedPool(behave, places=("one",)))
    assert list(outcomes(events).items())[-1] == (poison.id, "failed")  # tried last
    error = store.error(poison.id)
    assert error is not None
    assert error["message"] == "3 workers died in this cell, the last with signal SIGSEGV"
    assert (error["attempts"], error["traceback"]) == (MAX_ATTEMPTS, "its last words")


def test_after_too_little_memory_the_batches_are_smaller_once(store: SweepStore) -> None:
    hungry = CELLS[1]

    def behave(assignment: Assignment) -> Sequence[Message]:
        full = assignment.cells[0] == hungry
        return [WorkerDied("job state OUT_OF_MEMORY", out_of_memory=True)] if full else well(assignment)

    pool = ScriptedPool(behave)
    run(store, pool)
    sizes = [assignment.batch_size for assignment in pool.assignments if assignment.cells[0] == hungry]
    assert sizes == [None, hungry.batch_size // 4]
    error = store.error(hungry.id)
    assert error is not None
    assert (error["attempts"], error["batch_size"]) == (2, hungry.batch_size // 4)


def test_a_worker_that_died_after_its_last_write_has_finished(store: SweepStore) -> None:
    def behave(assignment: Assignment) -> Sequence[Message]:
        store.begin_cell(assignment.cells[0])
        store.write_result(assignment.cells[0], {"quality": {}})
        return [WorkerDied("signal SIGKILL")]

    pool = ScriptedPool(behave)
    events = run(store, pool)
    assert list(outcomes(events).values()) == ["done"] * len(CELLS)
    assert len(pool.assigned) == len(CELLS)


def test_a_slot_where_no_worker_starts_is_given_up(store: SweepStore) -> None:
    pool = ScriptedPool(well, unborn=lambda worker: worker.startswith("one"))
    events = run(store, pool)
    assert len(outcomes(events)) == len(CELLS)
    assert 1 <= sum(1 for worker in pool.started if worker.startswith("one")) <= MAX_FAILED_STARTS


def test_if_no_worker_starts_at_all_the_sweep_ends_with_the_reason(store: SweepStore) -> None:
    pool = ScriptedPool(well, unborn=lambda worker: True)
    with pytest.raises(PrerequisiteError, match=r"no worker can be started: .* no luck \(the log\)"):
        run(store, pool)
    assert pool.stopped
    assert len(pool.started) == 2 * MAX_FAILED_STARTS
    assert all(store.state(cell.id) == "pending" for cell in CELLS)


def test_workers_that_die_before_they_begin_are_not_started_for_ever(store: SweepStore) -> None:
    class Deaf(ScriptedPool):
        def submit(self, worker: str, assignment: Assignment) -> None:
            self.assigned.append((worker, assignment))
            self.messages.append((worker, WorkerDied("exit status 1", "KeyError: 'part'")))

    pool = Deaf(well)
    with pytest.raises(PrerequisiteError, match=r"no worker can be started: .* exit status 1 \(KeyError: 'part'\)"):
        run(store, pool)
    assert len(pool.started) == 2 * MAX_FAILED_STARTS
    assert all(store.state(cell.id) == "pending" for cell in CELLS)


def test_a_preempted_worker_is_no_attempt_of_its_cells(store: SweepStore) -> None:
    taken = itertools.count()

    def behave(assignment: Assignment) -> Sequence[Message]:
        if len(assignment.cells) == 4 and next(taken) < 5:
            return [WorkerDied("job state PREEMPTED", preempted=True)]
        return well(assignment)

    pool = ScriptedPool(behave, places=("one",))
    events = run(store, pool, share=4)
    assert [len(assignment.cells) for assignment in pool.assignments] == [1, *[4] * 6]  # together, as they were
    assert {assignment.attempt for assignment in pool.assignments} == {1}
    assert list(outcomes(events).values()) == ["done"] * len(CELLS)


def test_a_preempted_group_stays_as_it_was(store: SweepStore) -> None:
    """Two workers lose a group each at once: neither group takes cells of the other."""
    taken: set[str] = set()

    def behave(assignment: Assignment) -> Sequence[Message]:
        names = {cell.id for cell in assignment.cells}
        if assignment.cells[0].reference is None or names & taken:
            return well(assignment)
        taken.update(names)
        return [WorkerDied("job state PREEMPTED", preempted=True)]

    pool = ScriptedPool(behave)
    events = run(store, pool, share=2)
    assert sorted(outcomes(events)) == sorted(cell.id for cell in CELLS)
    groups = [assignment.cells for assignment in pool.assignments if REFERENCE not in assignment.cells]
    assert all(groups.count(group) == 2 for group in groups)


def test_a_cell_whose_workers_are_always_preempted_ends(store: SweepStore) -> None:
    unlucky = CELLS[2]

    def behave(assignment: Assignment) -> Sequence[Message]:
        gone = assignment.cells[0] == unlucky
        return [WorkerDied("job state TIMEOUT", preempted=True)] if gone else well(assignment)

    pool = ScriptedPool(behave, places=("one",))
    events = run(store, pool)
    assert outcomes(events)[unlucky.id] == "failed"
    assert sum(assignment.cells[0] == unlucky for assignment in pool.assignments) == MAX_PREEMPTIONS + MAX_ATTEMPTS


def test_a_full_disk_ends_the_sweep_and_marks_no_cell(store: SweepStore) -> None:
    pool = ScriptedPool(lambda assignment: [StorageFailed("cannot write: full", "make room")])
    with pytest.raises(StorageError, match="full") as caught:
        run(store, pool)
    assert caught.value.hint == "make room"
    assert pool.stopped
    assert all(store.state(cell.id) == "pending" for cell in CELLS)


def test_cells_of_one_batch_group_go_together_and_leave_some_for_other_workers(store: SweepStore) -> None:
    other = replace(CELL, batch_size=CELL.batch_size + 1, reference=REFERENCE.id)
    pool = ScriptedPool(well)
    events = run(store, pool, [*CELLS, other], share=3)
    given = [[cell.id for cell in assignment.cells] for assignment in pool.assignments]
    first, second, third, fourth = (cell.id for cell in CELLS[1:])
    assert given[:2] == [[REFERENCE.id], [first, second]]
    assert given[-1] == [other.id]
    assert [each for ids in given[2:-1] for each in ids] == [third, fourth]
    assert list(outcomes(events)) == [each for ids in given for each in ids]
    alone = ScriptedPool(well, places=("one",))
    run(store, alone, share=3)
    assert [len(assignment.cells) for assignment in alone.assignments] == [1, 3, 1]


def test_the_cell_that_kills_is_found_among_those_beside_it(store: SweepStore) -> None:
    poison = CELLS[3]

    def behave(assignment: Assignment) -> Sequence[Message]:
        return [WorkerDied("signal SIGKILL")] if poison in assignment.cells else well(assignment)

    pool = ScriptedPool(behave, places=("one",))
    events = run(store, pool, share=4)
    sizes = [len(assignment.cells) for assignment in pool.assignments if poison in assignment.cells]
    assert sizes == [4, 2, 1, 1, 1]
    assert [assignment.attempt for assignment in pool.assignments if poison in assignment.cells] == [1, 1, 1, 2, 3]
    ended = outcomes(events)
    assert ended == {cell.id: "failed" if cell == poison else "done" for cell in CELLS}
    others = [assignment for assignment in pool.assignments if poison not in assignment.cells]
    assert all(assignment.attempt == 1 for assignment in others)


def test_what_a_dead_worker_had_finished_of_its_cells_is_done(store: SweepStore) -> None:
    saved = CELLS[1:3]

    def behave(assignment: Assignment) -> Sequence[Message]:
        if len(assignment.cells) < 4:
            return well(assignment)
        for cell in saved:
            store.begin_cell(cell)
            store.write_result(cell, {"quality": {}})
        return [WorkerDied("signal SIGKILL")]

    pool = ScriptedPool(behave, places=("one",))
    events = run(store, pool, share=4)
    assert [len(assignment.cells) for assignment in pool.assignments] == [1, 4, 1, 1]
    assert sorted(outcomes(events)) == sorted(c.id for c in CELLS)


def evaluated(store: SweepStore, assignment: Assignment) -> Sequence[Message]:
    """A worker that evaluates, and then measures."""
    if assignment.phase == "cost":
        return well(assignment)
    for cell in assignment.cells:
        store.begin_cell(cell)
        store.write_answers(cell, {"quality": {}})
    return [*(CellEvaluated(cell) for cell in assignment.cells), WorkerReady()]


def test_costs_are_measured_alone_if_workers_share_a_device(store: SweepStore) -> None:
    pool = ScriptedPool(lambda assignment: evaluated(store, assignment), shared="cpu")
    events = run(store, pool)
    parts = [assignment.phase for assignment in pool.assignments]
    others = len(CELLS) - 1  # while one of them is asked, another one is, too
    assert parts == ["answers", "cost", *["answers"] * others, *["cost"] * others]
    assert [event.cell.id for event in events if isinstance(event, CellEvaluated)] == [
        assignment.cells[0].id for assignment in pool.assignments if assignment.phase == "answers"
    ]
    began = [event for event in events if isinstance(event, CellStarted)]
    assert [event.phase for event in began] == parts
    last_asked = max(number for number, event in enumerate(events) if isinstance(event, CellEvaluated))
    running = 0
    for event in events[last_asked:]:
        running += isinstance(event, CellStarted) - isinstance(event, CellFinished)
        assert running <= 1


def test_a_worker_with_a_device_for_itself_measures_what_it_has_evaluated(store: SweepStore) -> None:
    pool = ScriptedPool(lambda assignment: evaluated(store, assignment), places=("one",))
    run(store, pool, share=2)
    assert [(assignment.phase, len(assignment.cells)) for assignment in pool.assignments] == [
        *[("answers", 1), ("cost", 1)],
        *[("answers", 2), ("cost", 1), ("cost", 1)] * 2,
    ]


def test_cells_that_an_earlier_invocation_evaluated_are_measured_only(store: SweepStore) -> None:
    for cell in CELLS[:2]:
        evaluated(store, Assignment((cell,)))
    pool = ScriptedPool(lambda assignment: evaluated(store, assignment), places=("one",))
    events = run(store, pool)
    phases = [[each.phase for each in pool.assignments if each.cells[0] == cell] for cell in CELLS]
    assert phases == [["cost"]] * 2 + [["answers", "cost"]] * 3
    assert len(outcomes(events)) == len(CELLS)


def test_cells_are_kept_that_a_worker_evaluated_before_it_died(store: SweepStore) -> None:
    def behave(assignment: Assignment) -> Sequence[Message]:
        messages = evaluated(store, assignment)
        return [WorkerDied("signal SIGKILL")] if len(assignment.cells) == 4 else messages

    pool = ScriptedPool(behave, places=("one",))
    run(store, pool, share=4)
    assert [(assignment.phase, len(assignment.cells)) for assignment in pool.assignments] == [
        *[("answers", 1), ("cost", 1), ("answers", 4)],
        *[("cost", 1)] * 4,
    ]


def test_a_measurement_that_keeps_killing_leaves_the_answers(store: SweepStore) -> None:
    poison = CELLS[2]

    def behave(assignment: Assignment) -> Sequence[Message]:
        if assignment.phase == "cost" and assignment.cells[0] == poison:
            return [WorkerDied("signal SIGSEGV")]
        return evaluated(store, assignment)

    pool = ScriptedPool(behave, places=("one",))
    events = run(store, pool)
    assert set(outcomes(events).values()) == {"done"}
    assert [assignment.phase for assignment in pool.assignments if assignment.cells[0] == poison] == [
        "answers",
        "cost",
        "cost",
        "cost",
    ]
    result = store.result(poison.id)
    assert result is not None
    assert result["cost"]["error"] == "3 workers died in this cell, the last with signal SIGSEGV"
    assert result["quality"] == {}


@pytest.mark.parametrize("phase", ["answers", "cost"])
def test_an_assignment_travels_as_json(phase: Phase) -> None:
    assignment = Assignment(tuple(CELLS[1:4]), phase, attempt=2, batch_size=4)
    assert Assignment.from_json(json.loads(json.dumps(assignment.to_json()))) == assignment


@pytest.mark.parametrize(
    "message",
    [
        CellStarted(CELL, attempt=2, phase="cost"),
        CellProgress(CELL, "", 8, 16, 64.5, None, 812.0),
        CellEvaluated(CELL),
        CellFinished(CELL, "refused"),
        WorkerReady(),
        StorageFailed("full", "make room"),
    ],
)
def test_a_message_travels_as_json(message: WorkerMessage) -> None:
    line = json.dumps(message_to_json(message))
    assert message_from_json(json.loads(line), {CELL.id: CELL}) == message
