"""What a worker says of a running cell: how often, how fast, how much memory; and that it never harms the cell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.a_cell import CELL
from tests.sweep.fixtures import Workshop
from tokenprune import hookimpl
from tokenprune.cells.cell import Cell
from tokenprune.cells.events import CellEnded, CellProgress, CellStarted
from tokenprune.plugins import load_host
from tokenprune.registry import ExecutorSpec
from tokenprune.sweep import run_sweep
from tokenprune.sweep.executors.inline import InlineExecutor
from tokenprune.sweep.messages import Assignment, CellFinished, ExecutorEvent, WorkerMessage, WorkerReady
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.worker.throughput import ThroughputMeter
from tokenprune.sweep.worker.worker_main import WorkerSettings, run_worker


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock; change its only entry."""
    time = [500.0]
    monkeypatch.setattr("tokenprune.sweep.worker.throughput.time.monotonic", lambda: time[0])
    return time


class Reader:
    """A worker's meter, and what it told."""

    def __init__(self) -> None:
        self.meter = ThroughputMeter("cpu")
        self.told: list[CellProgress] = []

    def __call__(self, cell: Cell, done: int, kept_tokens: float | None = None) -> None:
        progress = self.meter.after_batch(cell, done, kept_tokens)
        if progress is not None:
            self.told.append(progress)


def of(samples: int, seed: int = 0) -> Cell:
    return replace(CELL, samples=samples, seed=seed)


def test_at_most_about_one_report_a_second_and_always_the_last(now: list[float]) -> None:
    read = Reader()
    for batch in range(1, 101):
        now[0] += 0.1
        read(of(100), batch, 64.0)
    assert [progress.samples_done for progress in read.told] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]


def test_the_rate_leaves_the_start_out_once_it_can(now: list[float]) -> None:
    read = Reader()
    now[0] += 10.0  # the model was loaded
    read(of(100), 20)
    now[0] += 2.0
    read(of(100), 40)
    now[0] += 2.0
    read(of(100), 60)
    assert [progress.samples_per_s for progress in read.told] == [2.0, 10.0, 10.0]


def test_cells_that_run_together_share_the_reports_and_add_to_the_rate(now: list[float]) -> None:
    read = Reader()
    for batch in range(1, 5):
        for seed in (0, 1):
            now[0] += 0.5 if seed else 1.0
            read(of(40, seed), 10 * batch)
    assert [(progress.cell.seed, progress.samples_done) for progress in read.told] == [
        *((0, 10), (0, 20), (0, 30), (0, 40), (1, 40))
    ]
    assert read.told[-1].samples_per_s == pytest.approx(70 / 5.0)


def test_a_report_says_what_the_cell_keeps_and_the_worker_holds(now: list[float]) -> None:
    read = Reader()
    now[0] += 1.0
    read(of(16), 8, 64.5)
    (progress,) = read.told
    assert (progress.samples_done, progress.samples, progress.kept_tokens) == (8, 16, 64.5)
    assert progress.memory_mib is not None
    assert 10 < progress.memory_mib < 100_000


class Chatty(InlineExecutor):
    """Says of every cell, when it begins, that half of it is through."""

    def run(self, cells: Sequence[Cell]) -> Iterator[ExecutorEvent]:
        for event in super().run(cells):
            yield event
            if isinstance(event, CellStarted):
                yield CellProgress(event.cell, "me", 4, 8, 3.0, 2.0, 100.0)


def test_displays_are_told_and_trackers_are_not(workshop: Workshop, tmp_path: Path) -> None:
    heard: list[str] = []

    class Plugin:
        @hookimpl
        def register_executors(self, register: Callable[[ExecutorSpec], None]) -> None:
            register(ExecutorSpec("chatty", "tests.sweep.executors.test_progress:Chatty", "talks"))

        @hookimpl
        def on_cell_start(self, event: CellStarted) -> None:
            heard.append(type(event).__name__)

        @hookimpl
        def on_cell_end(self, event: CellEnded) -> None:
            heard.append(type(event).__name__)

    host = load_host(
        defaults=(
            "tokenprune.baselines",
            "tokenprune.families",
            "tokenprune.checkpoints",
            "tokenprune.sweep.executors.executor",
        )
    )
    host.add(Plugin(), "chatty")
    seen: list[Any] = []
    outcome = run_sweep(
        workshop.config(pruners=["grid"], budgets=[4], efficiency=False, lens=False, overlays=0),
        directory=tmp_path / "run",
        host=host,
        display=seen.append,
        executor="chatty",
    )
    assert (outcome.done, outcome.problems) == (2, ())
    assert heard == ["CellStarted", "CellEnded"] * 2
    progress = [event for event in seen if isinstance(event, CellProgress)]
    assert [event.cell.pruner for event in progress] == ["none", "grid"]
    assert [(event.worker, event.samples_done, event.samples) for event in progress] == [("me", 4, 8)] * 2
    assert [(event.kept_tokens, event.samples_per_s, event.memory_mib) for event in progress] == [(3.0, 2.0, 100.0)] * 2


@pytest.mark.parametrize("error", [BrokenPipeError(), StorageError("full")])
def test_progress_that_cannot_be_sent_is_no_matter_of_the_cell(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Runner:
        def run(self, assignment: Assignment) -> Iterator[ExecutorEvent]:
            yield CellProgress(CELL)
            yield CellFinished(CELL, "done")

    assignments = iter([Assignment((CELL,)), None])
    sent: list[WorkerMessage] = []

    def send(message: WorkerMessage) -> None:
        if isinstance(message, CellProgress):
            raise error
        sent.append(message)

    monkeypatch.setattr(WorkerSettings, "make_runner", lambda self: Runner())
    run_worker(WorkerSettings("run", "cpu", 0, ""), lambda: next(assignments), send)
    assert sent == [WorkerReady(), CellStarted(CELL), CellFinished(CELL, "done"), WorkerReady()]


def test_memory_follows_what_the_process_holds() -> None:
    """In a process of its own: a large one may take the array out of memory that it holds already."""
    code = (
        "import numpy as np\n"
        "from tokenprune.sweep.worker.throughput import memory_mib\n"
        "before = memory_mib('cpu')\n"
        "held = np.ones(8 << 20)\n"  # 64 MiB
        "print(memory_mib('cpu') - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 < float(ran.stdout) < 100
