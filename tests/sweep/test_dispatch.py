"""The rules of `Dispatcher`, with a crew that does what a script says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.sweep.test_identity import CELL
from tokenprune.cell import Cell, Phase
from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.executors.scheduler import MAX_ATTEMPTS, MAX_MOVES, MAX_STILLBIRTHS, Dispatcher
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

REFERENCE = replace(CELL, pruner="none", label="none", reference=None)
CELLS = [REFERENCE, *(replace(CELL, seed=seed, reference=REFERENCE.id) for seed in range(4))]

Behaviour = Callable[[str, Order], Sequence[Message]]


@dataclass
class ScriptedCrew:
    """Workers that take an order and then do what `behave` says; those that `stillborn` names die before."""

    behave: Behaviour
    places: Sequence[str] = ("one", "two")
    stillborn: Callable[[str], bool] = lambda worker: False
    together: str = ""
    hired: list[str] = field(default_factory=list)
    orders: list[tuple[str, Order]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    dismissed: bool = False

    def slots(self) -> Sequence[str]:
        return self.places

    def place(self, slot: str) -> str:
        return self.together or slot

    def hire(self, slot: str) -> str:
        worker = f"{slot}#{len(self.hired)}"
        self.hired.append(worker)
        self.messages.append(Died(worker, "no luck", "the log") if self.stillborn(worker) else Ready(worker))
        return worker

    def give(self, worker: str, order: Order) -> None:
        self.orders.append((worker, order))
        self.messages += [Took(worker), *self.behave(worker, order)]

    def listen(self) -> Iterator[Message]:
        assert self.messages, "nothing will ever happen again"
        yield self.messages.pop(0)

    def dismiss(self) -> None:
        self.dismissed = True


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(tmp_path / "sweep")
    made.open_sweep({"models": ["scenes"]}, CELLS)
    return made


def well(worker: str, order: Order) -> Sequence[Message]:
    return [Finished(worker, {cell.id: "done" for cell in order.cells})]


def run(store: SweepStore, crew: ScriptedCrew, cells: Sequence[Cell] = CELLS, share: int = 1) -> list[Report]:
    reports = list(Dispatcher(store, crew, share).run(cells))
    assert crew.dismissed
    return reports


def test_every_cell_once_and_the_reference_first(store: SweepStore) -> None:
    crew = ScriptedCrew(well)
    reports = run(store, crew)
    assert reports[:2] == [Began(REFERENCE.id, "one#0"), Ended(REFERENCE.id, "done")]
    assert sorted(order.cell.id for _, order in crew.orders) == sorted(cell.id for cell in CELLS)
    assert {report.cell_id for report in reports if isinstance(report, Ended)} == {cell.id for cell in CELLS}
    assert crew.hired == ["one#0", "two#1"]


def test_progress_is_passed_on_while_its_cell_runs(store: SweepStore) -> None:
    def behave(worker: str, order: Order) -> Sequence[Message]:
        told = [Progress(order.cell.id, worker, done, 2, 64.0, 3.5, 812.0) for done in (1, 2)]
        return [told[0], *well(worker, order), told[1]]  # the second comes too late

    reports = run(store, ScriptedCrew(behave, places=("one",)))
    assert len(reports) == 3 * len(CELLS)
    for began, progress, ended in zip(reports[::3], reports[1::3], reports[2::3], strict=True):
        assert isinstance(began, Began)
        assert progress == Progress(began.cell_id, began.worker, 1, 2, 64.0, 3.5, 812.0)
        assert isinstance(ended, Ended)


def test_a_dead_workers_cell_is_tried_by_another_worker(store: SweepStore) -> None:
    victim = CELLS[2]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        dies = order.cell == victim and order.attempt < MAX_ATTEMPTS
        return [Died(worker, "signal SIGKILL")] if dies else well(worker, order)

    crew = ScriptedCrew(behave)
    reports = run(store, crew)
    tried = [(worker, order.attempt) for worker, order in crew.orders if order.cell == victim]
    assert [attempt for _, attempt in tried] == [1, 2, 3]
    assert len({worker for worker, _ in tried}) == 3
    assert [report.attempt for report in reports if isinstance(report, Began) and report.cell_id == victim.id] == [
        1,
        2,
        3,
    ]
    assert Ended(victim.id, "done") in reports
    assert store.error(victim.id) is None


def test_a_cell_that_keeps_killing_is_set_aside(store: SweepStore) -> None:
    poison = CELLS[1]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        return [Died(worker, "signal SIGSEGV", "its last words")] if order.cell == poison else well(worker, order)

    reports = run(store, ScriptedCrew(behave, places=("one",)))
    assert [report for report in reports if isinstance(report, Ended)][-1] == Ended(poison.id, "failed")  # tried last
    error = store.error(poison.id)
    assert error is not None
    assert error["message"] == "3 workers died in this cell, the last with signal SIGSEGV"
    assert (error["attempts"], error["traceback"]) == (MAX_ATTEMPTS, "its last words")


def test_after_too_little_memory_the_batches_are_smaller_once(store: SweepStore) -> None:
    hungry = CELLS[1]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        full = order.cell == hungry
        return [Died(worker, "job state OUT_OF_MEMORY", out_of_memory=True)] if full else well(worker, order)

    crew = ScriptedCrew(behave)
    run(store, crew)
    sizes = [order.batch_size for _, order in crew.orders if order.cell == hungry]
    assert sizes == [None, hungry.batch_size // 4]
    error = store.error(hungry.id)
    assert error is not None
    assert (error["attempts"], error["batch_size"]) == (2, hungry.batch_size // 4)


def test_a_worker_that_died_after_its_last_write_has_finished(store: SweepStore) -> None:
    def behave(worker: str, order: Order) -> Sequence[Message]:
        store.begin_cell(order.cell)
        store.write_result(order.cell, {"quality": {}})
        return [Died(worker, "signal SIGKILL")]

    crew = ScriptedCrew(behave)
    reports = run(store, crew)
    assert [report.outcome for report in reports if isinstance(report, Ended)] == ["done"] * len(CELLS)
    assert len(crew.orders) == len(CELLS)


def test_a_slot_where_no_worker_starts_is_given_up(store: SweepStore) -> None:
    crew = ScriptedCrew(well, stillborn=lambda worker: worker.startswith("one"))
    reports = run(store, crew)
    assert sum(1 for report in reports if isinstance(report, Ended)) == len(CELLS)
    assert 1 <= sum(1 for worker in crew.hired if worker.startswith("one")) <= MAX_STILLBIRTHS


def test_where_no_worker_starts_at_all_the_sweep_ends_with_the_reason(store: SweepStore) -> None:
    crew = ScriptedCrew(well, stillborn=lambda worker: True)
    with pytest.raises(PrerequisiteError, match=r"no worker can be started: .* no luck \(the log\)"):
        run(store, crew)
    assert crew.dismissed
    assert len(crew.hired) == 2 * MAX_STILLBIRTHS
    assert all(store.state(cell.id) == "pending" for cell in CELLS)


def test_workers_that_die_before_they_begin_are_not_hired_for_ever(store: SweepStore) -> None:
    class Deaf(ScriptedCrew):
        def give(self, worker: str, order: Order) -> None:
            self.orders.append((worker, order))
            self.messages.append(Died(worker, "exit status 1", "KeyError: 'part'"))

    crew = Deaf(well)
    with pytest.raises(PrerequisiteError, match=r"no worker can be started: .* exit status 1 \(KeyError: 'part'\)"):
        run(store, crew)
    assert len(crew.hired) == 2 * MAX_STILLBIRTHS
    assert all(store.state(cell.id) == "pending" for cell in CELLS)


def test_a_worker_that_was_taken_away_is_no_try_of_its_cells(store: SweepStore) -> None:
    taken = itertools.count()

    def behave(worker: str, order: Order) -> Sequence[Message]:
        if len(order.cells) == 4 and next(taken) < 5:
            return [Died(worker, "job state PREEMPTED", blameless=True)]
        return well(worker, order)

    crew = ScriptedCrew(behave, places=("one",))
    reports = run(store, crew, share=4)
    assert [len(order.cells) for _, order in crew.orders] == [1, *[4] * 6]  # together, as they were
    assert {order.attempt for _, order in crew.orders} == {1}
    assert [report.outcome for report in reports if isinstance(report, Ended)] == ["done"] * len(CELLS)


def test_a_cell_whose_workers_are_always_taken_away_ends(store: SweepStore) -> None:
    unlucky = CELLS[2]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        gone = order.cell == unlucky
        return [Died(worker, "job state TIMEOUT", blameless=True)] if gone else well(worker, order)

    crew = ScriptedCrew(behave, places=("one",))
    reports = run(store, crew)
    assert Ended(unlucky.id, "failed") in reports
    assert sum(order.cell == unlucky for _, order in crew.orders) == MAX_MOVES + MAX_ATTEMPTS


def test_a_full_disk_ends_the_sweep_and_marks_no_cell(store: SweepStore) -> None:
    crew = ScriptedCrew(lambda worker, order: [DiskFailed(worker, "cannot write: full", "make room")])
    with pytest.raises(StorageError, match="full") as caught:
        run(store, crew)
    assert caught.value.hint == "make room"
    assert crew.dismissed
    assert all(store.state(cell.id) == "pending" for cell in CELLS)


def test_cells_of_one_company_are_given_together_and_leave_some_for_other_workers(store: SweepStore) -> None:
    other = replace(CELL, batch_size=CELL.batch_size + 1, reference=REFERENCE.id)
    crew = ScriptedCrew(well)
    reports = run(store, crew, [*CELLS, other], share=3)
    given = [[cell.id for cell in order.cells] for _, order in crew.orders]
    first, second, third, fourth = (cell.id for cell in CELLS[1:])
    assert given[:2] == [[REFERENCE.id], [first, second]]
    assert given[-1] == [other.id]
    assert [each for ids in given[2:-1] for each in ids] == [third, fourth]
    assert [report.cell_id for report in reports if isinstance(report, Ended)] == [
        each for ids in given for each in ids
    ]
    alone = ScriptedCrew(well, places=("one",))
    run(store, alone, share=3)
    assert [len(order.cells) for _, order in alone.orders] == [1, 3, 1]


def test_the_cell_that_kills_is_found_among_those_beside_it(store: SweepStore) -> None:
    poison = CELLS[3]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        return [Died(worker, "signal SIGKILL")] if poison in order.cells else well(worker, order)

    crew = ScriptedCrew(behave, places=("one",))
    reports = run(store, crew, share=4)
    sizes = [len(order.cells) for _, order in crew.orders if poison in order.cells]
    assert sizes == [4, 2, 1, 1, 1]
    assert [order.attempt for _, order in crew.orders if poison in order.cells] == [1, 1, 1, 2, 3]
    ended = {report.cell_id: report.outcome for report in reports if isinstance(report, Ended)}
    assert ended == {cell.id: "failed" if cell == poison else "done" for cell in CELLS}
    others = [order for _, order in crew.orders if poison not in order.cells]
    assert all(order.attempt == 1 for order in others)


def test_what_a_dead_worker_had_finished_of_its_cells_is_done(store: SweepStore) -> None:
    saved = CELLS[1:3]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        if len(order.cells) < 4:
            return well(worker, order)
        for cell in saved:
            store.begin_cell(cell)
            store.write_result(cell, {"quality": {}})
        return [Died(worker, "signal SIGKILL")]

    crew = ScriptedCrew(behave, places=("one",))
    reports = run(store, crew, share=4)
    assert [len(order.cells) for _, order in crew.orders] == [1, 4, 1, 1]
    assert sorted(report.cell_id for report in reports if isinstance(report, Ended)) == sorted(c.id for c in CELLS)


def asked(store: SweepStore, order: Order) -> Sequence[Message]:
    """A worker that asks, and then measures."""
    if order.part == "cost":
        return well("", order)
    for cell in order.cells:
        store.begin_cell(cell)
        store.write_answers(cell, {"quality": {}})
    return [Finished("", {cell.id: "answered" for cell in order.cells})]


def as_worker(worker: str, messages: Sequence[Message]) -> Sequence[Message]:
    return [replace(message, worker=worker) for message in messages]  # type: ignore[type-var]


def test_costs_are_measured_alone_where_workers_share_a_place(store: SweepStore) -> None:
    crew = ScriptedCrew(lambda worker, order: as_worker(worker, asked(store, order)), together="cpu")
    reports = run(store, crew)
    parts = [order.part for _, order in crew.orders]
    others = len(CELLS) - 1  # while one of them is asked, another one is, too
    assert parts == ["answers", "cost", *["answers"] * others, *["cost"] * others]
    assert [report.cell_id for report in reports if isinstance(report, Answered)] == [
        order.cell.id for _, order in crew.orders if order.part == "answers"
    ]
    began = [report for report in reports if isinstance(report, Began)]
    assert [report.part for report in began] == parts
    last_asked = max(number for number, report in enumerate(reports) if isinstance(report, Answered))
    running = 0
    for report in reports[last_asked:]:
        running += isinstance(report, Began) - isinstance(report, Ended)
        assert running <= 1


def test_a_worker_with_its_place_to_itself_measures_what_it_has_asked(store: SweepStore) -> None:
    crew = ScriptedCrew(lambda worker, order: as_worker(worker, asked(store, order)), places=("one",))
    run(store, crew, share=2)
    assert [(order.part, len(order.cells)) for _, order in crew.orders] == [
        *[("answers", 1), ("cost", 1)],
        *[("answers", 2), ("cost", 1), ("cost", 1)] * 2,
    ]


def test_answers_of_an_earlier_invocation_are_not_asked_again(store: SweepStore) -> None:
    for cell in CELLS[:2]:
        asked(store, Order(cell))
    crew = ScriptedCrew(lambda worker, order: as_worker(worker, asked(store, order)), places=("one",))
    reports = run(store, crew)
    parts = {cell.id: [order.part for _, order in crew.orders if order.cell == cell] for cell in CELLS}
    assert [parts[cell.id] for cell in CELLS] == [["cost"]] * 2 + [["answers", "cost"]] * 3
    assert sum(isinstance(report, Ended) for report in reports) == len(CELLS)


def test_a_worker_that_dies_after_the_answers_costs_none_of_them(store: SweepStore) -> None:
    def behave(worker: str, order: Order) -> Sequence[Message]:
        messages = as_worker(worker, asked(store, order))
        return [Died(worker, "signal SIGKILL")] if len(order.cells) == 4 else messages

    crew = ScriptedCrew(behave, places=("one",))
    run(store, crew, share=4)
    assert [(order.part, len(order.cells)) for _, order in crew.orders] == [
        *[("answers", 1), ("cost", 1), ("answers", 4)],
        *[("cost", 1)] * 4,
    ]


def test_a_measurement_that_keeps_killing_leaves_the_answers(store: SweepStore) -> None:
    poison = CELLS[2]

    def behave(worker: str, order: Order) -> Sequence[Message]:
        if order.part == "cost" and order.cell == poison:
            return [Died(worker, "signal SIGSEGV")]
        return as_worker(worker, asked(store, order))

    crew = ScriptedCrew(behave, places=("one",))
    reports = run(store, crew)
    assert {report.outcome for report in reports if isinstance(report, Ended)} == {"done"}
    assert [order.part for _, order in crew.orders if order.cell == poison] == ["answers", "cost", "cost", "cost"]
    result = store.result(poison.id)
    assert result is not None
    assert result["cost"]["error"] == "3 workers died in this cell, the last with signal SIGSEGV"
    assert result["quality"] == {}


@pytest.mark.parametrize("part", ["answers", "cost"])
def test_an_order_travels_as_json(part: Phase) -> None:
    order = Order(CELLS[1], attempt=2, batch_size=4, beside=tuple(CELLS[2:4]), part=part)
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order
