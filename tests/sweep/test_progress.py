"""What a worker says of a running cell: how often, how fast, how much memory; and that it never harms the cell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune import hookimpl
from tokenprune.cell import Cell
from tokenprune.events import CellEnded, CellProgress, CellStarted
from tokenprune.plugins import load_host
from tokenprune.registry import ExecutorSpec
from tokenprune.sweep import run_sweep
from tokenprune.sweep.executors.inline import Inline
from tokenprune.sweep.messages import Began, Progress, Report, message_of
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.worker.throughput import Meter

PLAIN = ("tokenprune.baselines", "tokenprune.families", "tokenprune.checkpoints", "tokenprune.sweep.executors.executor")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock; change its only entry."""
    time = [500.0]
    monkeypatch.setattr("tokenprune.sweep.worker.throughput.time.monotonic", lambda: time[0])
    return time


def test_at_most_about_one_report_a_second_and_always_the_last(now: list[float]) -> None:
    said: list[Mapping[str, Any]] = []
    meter = Meter("cpu", said.append)
    for batch in range(1, 101):
        now[0] += 0.1
        meter("cell", batch, 100, 64.0)
    assert [report["done"] for report in said] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]


def test_the_rate_leaves_the_start_out_once_it_can(now: list[float]) -> None:
    said: list[Mapping[str, Any]] = []
    meter = Meter("cpu", said.append)
    now[0] += 10.0  # the model was loaded
    meter("cell", 20, 100)
    now[0] += 2.0
    meter("cell", 40, 100)
    now[0] += 2.0
    meter("cell", 60, 100)
    assert [report["samples_per_s"] for report in said] == [2.0, 10.0, 10.0]


def test_cells_that_run_together_share_the_reports_and_add_to_the_rate(now: list[float]) -> None:
    said: list[Mapping[str, Any]] = []
    meter = Meter("cpu", said.append)
    for batch in range(1, 5):
        for cell in ("one", "two"):
            now[0] += 1.0 if cell == "one" else 0.5
            meter(cell, 10 * batch, 40)
    assert [(report["cell_id"], report["done"]) for report in said] == [
        *(("one", 10), ("one", 20), ("one", 30), ("one", 40), ("two", 40))
    ]
    assert said[-1]["samples_per_s"] == pytest.approx(70 / 5.0)


def test_a_report_travels_as_json_to_the_message(now: list[float]) -> None:
    said: list[Mapping[str, Any]] = []
    now[0] += 1.0
    Meter("cpu", said.append)("cell", 8, 16, 64.5)
    message = message_of("cpu#1", json.loads(json.dumps(said[0])))
    assert isinstance(message, Progress)
    assert (message.cell_id, message.worker, message.done, message.total) == ("cell", "cpu#1", 8, 16)
    assert message.kept == 64.5
    assert message.memory_mib is not None
    assert 10 < message.memory_mib < 100_000


class Chatty(Inline):
    """Says of every cell, when it begins, that half of it is through."""

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        for report in super().run(cells):
            yield report
            if isinstance(report, Began):
                yield Progress(report.cell_id, "me", 4, 8, 3.0, 2.0, 100.0)


def test_displays_are_told_and_trackers_are_not(workshop: Workshop, tmp_path: Path) -> None:
    heard: list[str] = []

    class Plugin:
        @hookimpl
        def register_executors(self, register: Callable[[ExecutorSpec], None]) -> None:
            register(ExecutorSpec("chatty", "tests.sweep.test_progress:Chatty", "talks"))

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
def test_a_report_that_cannot_be_sent_is_no_matter_of_the_cell(error: Exception) -> None:
    def fail(report: Mapping[str, Any]) -> None:
        raise error

    Meter("cpu", fail)("cell", 1, 2)


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
