"""What a running sweep looks like, from events."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, ConsoleDimensions

from tests.cli.commands import Commands
from tests.sweep.a_cell import CELL
from tokenprune.cells.cell import Cell
from tokenprune.cells.events import (
    CellEnded,
    CellEvaluated,
    CellFailed,
    CellProgress,
    CellStarted,
    Event,
    SweepEnded,
    SweepStarted,
)
from tokenprune.cli.display import JsonLines, Lines, LiveDisplay, sweep_display
from tokenprune.cli.options import ProgressForm
from tokenprune.cli.output import Output
from tokenprune.cli.sweep_progress import EVALUATION_SHARE, SweepProgress

PLACE = (Path("run"), "id")


def cell(pruner: str, ratio: float | None, *, task: str = "scenes", seed: int = 0) -> Cell:
    facts = {"task": task, "pruner": pruner, "label": pruner, "budget_ratio": ratio, "seed": seed}
    return replace(CELL, **facts, options={}, samples=8, lens={}, efficiency={}, reference=None)


NONE, RANDOM, HALF = cell("none", None), cell("random", 0.25), cell("random", 0.5)


def ended(which: Cell, accuracy: float, done: int) -> CellEnded:
    result = {"quality": {"accuracy": accuracy}, "tokens": {"layer_average": 64.0}, "seconds": 2.5}
    return CellEnded(which, result, done=done, total=3)


EVENTS: list[Event] = [
    SweepStarted(*PLACE, "demo", {}, (NONE, RANDOM, HALF), {}),
    CellStarted(NONE, "cpu#1", done=0, total=3),
    ended(NONE, 0.9, 1),
    CellStarted(RANDOM, "cpu#1", done=1, total=3),
    CellFailed(RANDOM, "failed", {"type": "OSError", "message": "disk full\nmore"}, done=2, total=3),
    CellStarted(HALF, "cpu#1", done=2, total=3),
]


PROGRESS = CellProgress(HALF, "cpu#1", 120, 512, 64.25, 8.125, 812.4)


def live() -> LiveDisplay:
    return LiveDisplay(Output(talk=Console(file=io.StringIO(), width=80, height=40)))


def picture(board: LiveDisplay, *, width: int = 80, height: int = 40) -> str:
    with board.console.capture() as captured:
        board.console.size = ConsoleDimensions(width, height)
        board.console.print(board)
    return captured.get()


def test_the_board_fills_in_pruners_by_budgets() -> None:
    board = live()
    for event in EVENTS:
        board.take(event)
    shown = picture(board)
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:6] in ("none  ", "random")}
    assert rows == {"none": ["0.900"], "random": ["failed", "running"]}
    assert "2/3 cells" in shown
    assert "left" in shown
    assert "1 done, 1 failed, 1 running" in shown
    assert "failed: random/scenes@25%: OSError: disk full" in shown
    assert "more" not in shown
    board.take(ended(HALF, 0.5, 3))
    board.take(SweepEnded(*PLACE, "failures", 2, 1, 0, 0, 9.0))
    shown = picture(board)
    assert "3/3 cells" in shown
    assert "2 done, 1 failed\n" in shown.replace(" \n", "\n").replace("  ", "")
    assert "running" not in shown
    assert "left" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_board_says_of_every_worker_its_cell_speed_tokens_and_memory() -> None:
    board = live()
    for event in EVENTS:
        board.take(event)
    assert worker_row(board, "cpu#1") == ["cpu#1", "random/scenes@50%", "begins"]
    board.take(PROGRESS)
    board.take(CellStarted(RANDOM, "cuda:1#7", 2, done=2, total=3))
    (heading,) = [line.split() for line in picture(board).splitlines() if line.startswith("worker")]
    assert heading == ["worker", "cell", "samples", "per", "s", "kept", "memory"]
    assert worker_row(board, "cpu#1") == [*("cpu#1", "random/scenes@50%", "120/512", "8.1", "64.2", "812", "MiB")]
    assert worker_row(board, "cuda:1#7") == ["cuda:1#7", "random/scenes@25%", "(attempt", "2)", "begins"]
    board.take(replace(PROGRESS, kept_tokens=None, samples_per_s=None, memory_mib=None))
    assert worker_row(board, "cpu#1")[-3:] == ["-", "-", "-"]
    board.take(replace(PROGRESS, memory_mib=81_920.0))
    assert worker_row(board, "cpu#1")[-2:] == ["80.0", "GiB"]
    board.take(ended(HALF, 0.5, 3))
    assert "cpu#1" not in picture(board)


def test_a_cell_that_was_asked_waits_for_its_measurement() -> None:
    board = live()
    for event in EVENTS:
        board.take(event)
    board.take(PROGRESS)
    board.take(CellEvaluated(HALF))
    shown = picture(board)
    assert "cpu#1" not in shown  # it may ask other cells, or have nothing to do
    assert "1 done, 1 failed, 1 to be measured\n" in shown.replace(" \n", "\n").replace("  ", "")
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("random ")] == ["scored"]
    board.take(CellStarted(HALF, "cpu#2", phase="cost", done=2, total=3))
    assert worker_row(board, "cpu#2") == ["cpu#2", "random/scenes@50%", "(cost)"]
    assert "1 done, 1 failed, 1 running" in picture(board)
    assert board.state.seconds_left() is not None
    board.take(ended(HALF, 0.5, 3))
    assert "2 done, 1 failed" in picture(board)


def test_cells_that_a_worker_runs_together_are_one_row() -> None:
    board = live()
    board.take(SweepStarted(*PLACE, "demo", {}, (NONE, RANDOM, HALF), {}))
    for one in (NONE, RANDOM, HALF):
        board.take(CellStarted(one, "cpu#1", done=0, total=3))
    assert worker_row(board, "cpu#1") == ["cpu#1", "none/scenes@all", "+2", "begins"]
    board.take(PROGRESS)
    assert worker_row(board, "cpu#1")[:4] == ["cpu#1", "random/scenes@50%", "+2", "120/512"]
    assert "0 done, 3 running" in picture(board)
    board.take(CellStarted(HALF, "cpu#2", 2, done=0, total=3))  # the worker died, another one takes a cell
    assert worker_row(board, "cpu#1") == ["cpu#1", "none/scenes@all", "+1", "begins"]
    assert worker_row(board, "cpu#2") == ["cpu#2", "random/scenes@50%", "(attempt", "2)", "begins"]


def worker_row(board: LiveDisplay, worker: str) -> list[str]:
    (row,) = [line.split() for line in picture(board).splitlines() if line.startswith(worker)]
    return row


def test_a_large_board_fits_80_columns_and_24_lines_and_keeps_the_workers() -> None:
    labels = [f"a-pruner-with-quite-a-long-name-{number}" for number in range(30)]
    cells = tuple(cell(label, ratio / 100) for label in labels for ratio in range(5, 80, 5))
    board = live()
    board.take(SweepStarted(*PLACE, "demo", {}, cells, {}))
    for number, running in enumerate(cells[-10:]):
        board.take(CellStarted(running, f"cuda:{number}#1234567", done=0, total=len(cells)))
        board.take(replace(PROGRESS, cell=running, worker=f"cuda:{number}#1234567"))
    for failed in cells[:5]:
        board.take(CellFailed(failed, "failed", {"type": "OSError", "message": "x" * 200}, done=5, total=len(cells)))
    lines = picture(board, height=24).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert len(lines) < 24
    assert sum(line.startswith("cuda:") for line in lines) == 7  # a third of the screen
    assert "and 3 more" in "\n".join(lines)
    assert sum(line.startswith("failed: ") for line in lines) == 3
    assert lines[-1].strip() == "and 28 more pruners, 10 more budgets"
    assert labels[-1] in "\n".join(lines)  # what runs now is shown first
    assert labels[0] in "\n".join(lines)  # and what ended last
    small = picture(board, width=40, height=10).splitlines()
    assert max(len(line) for line in small) <= 40


def test_the_board_is_drawn_in_one_thread_while_events_come_in_another() -> None:
    cells = tuple(cell("random", ratio / 1000) for ratio in range(1, 300))
    board = live()
    board.take(SweepStarted(*PLACE, "demo", {}, cells, {}))
    errors: list[Exception] = []
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            try:
                picture(board)
            except Exception as error:  # noqa: BLE001 - any error is what the test is about
                errors.append(error)

    drawer = threading.Thread(target=draw)
    drawer.start()
    for one in cells:
        board.take(CellStarted(one, "cpu#1", done=0, total=len(cells)))
    for one in cells:
        board.take(ended(one, 0.5, 1))
    stop.set()
    drawer.join()
    assert errors == []


def test_the_board_tells_tasks_and_seeds_apart() -> None:
    board = live()
    other = cell("random", 0.25, task="video", seed=1)
    board.take(SweepStarted(*PLACE, "demo", {}, (RANDOM, other), {RANDOM.id: "done"}))
    shown = picture(board)
    assert "random scenes/scenes" in shown
    assert "random scenes/video seed 1" in shown
    assert "1/2 cells" in shown


# --- time left ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the displays see; change its only entry."""
    now = [1000.0]
    monkeypatch.setattr("tokenprune.cli.sweep_progress.time.monotonic", lambda: now[0])
    return now


def timed(which: Cell, seconds: float) -> CellEnded:
    return replace(ended(which, 0.5, 1), result={**ended(which, 0.5, 1).result, "seconds": seconds})


def test_time_left_is_estimated_from_finished_cells(clock: list[float]) -> None:
    video = [cell("random", ratio, task="video") for ratio in (0.25, 0.5)]
    progress = SweepProgress()
    progress.take(SweepStarted(*PLACE, "demo", {}, (NONE, RANDOM, HALF, *video), {}))
    progress.take(CellStarted(NONE, "cpu#1", done=0, total=5))
    clock[0] += 30
    assert (progress.seconds_left(), progress.time_left()) == (None, "estimating time left")
    progress.take(timed(NONE, 30.0))
    assert progress.seconds_left() == pytest.approx(4 * 30.0)
    assert progress.time_left() == "about 2:00 left"
    progress.take(CellStarted(video[0], "cpu#1", done=1, total=5))
    clock[0] += 90
    progress.take(timed(video[0], 90.0))
    assert progress.seconds_left() == pytest.approx(2 * 30.0 + 90.0)  # each task at its own pace
    progress.take(CellStarted(video[1], "cpu#1", done=2, total=5))
    clock[0] += 30
    progress.take(CellProgress(video[1], "cpu#1", 1, 3))
    behind = 90.0 * EVALUATION_SHARE / 3
    pace = 150.0 / (30.0 + 90.0 + behind)
    assert progress.seconds_left() == pytest.approx(pace * (2 * 30.0 + 90.0 - behind))
    progress.take(CellFailed(RANDOM, "failed", {}, done=3, total=5))
    assert progress.seconds_left() == pytest.approx(pace * (30.0 + 90.0 - behind))
    progress.take(CellProgress(video[1], "cpu#1", 3, 3))
    progress.take(CellFailed(HALF, "failed", {}, done=4, total=5))
    assert progress.seconds_left() > 5.0  # its samples are through, but it is not


def test_time_left_of_several_workers_and_after_a_restart(clock: list[float]) -> None:
    progress = SweepProgress()
    cells = tuple(cell("random", ratio / 100) for ratio in range(1, 21))
    progress.take(SweepStarted(*PLACE, "demo", {}, cells, {one.id: "done" for one in cells[:8]}))
    assert progress.time_left() == "estimating time left"
    clock[0] += 40
    for one in cells[8:12]:  # four workers, 40 s each, at the same time
        progress.take(timed(one, 40.0))
    assert progress.seconds_left() == pytest.approx(80.0)
    clock[0] += 10_000
    assert progress.time_left() == f"about {20_080 // 3600}:{20_080 % 3600 // 60:02d}:{20_080 % 60:02d} left"


# --- lines ----------------------------------------------------------------------------------------------------------


def output() -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    return Output(data=Console(file=io.StringIO()), talk=Console(file=stream, width=80, highlight=False)), stream


def test_lines_are_one_per_finished_cell() -> None:
    sink, stream = output()
    lines = Lines(sink)
    for event in [*EVENTS, PROGRESS]:
        lines.take(event)
    assert stream.getvalue().splitlines() == [
        "sweep `demo`: 3 cells, 0 finished before, 3 to run",
        "[1/3] ok       none/scenes@all  accuracy 0.900  tokens 64.0  2.5 s",
        "[2/3] failed   random/scenes@25%  OSError: disk full",
    ]


def test_lines_say_what_runs_where_nothing_was_said_for_a_while(clock: list[float]) -> None:
    sink, stream = output()
    lines = Lines(sink)
    lines.take(SweepStarted(*PLACE, "demo", {}, (NONE, RANDOM, HALF), {}))
    lines.take(CellStarted(HALF, "cpu#1", done=0, total=3))
    lines.take(CellStarted(RANDOM, "cuda:1#9", done=0, total=3))
    for _ in range(70):
        clock[0] += 1
        lines.take(PROGRESS)
    said = stream.getvalue().splitlines()[1:]
    assert said == 2 * [
        "0 done, 2 running, 1 waiting  estimating time left",
        "  cpu#1  random/scenes@50%  120/512 samples  8.1/s  kept 64.2  812 MiB",
        "  cuda:1#9  random/scenes@25%  begins",
    ]


def test_json_lines_are_one_object_per_event() -> None:
    sink, stream = output()
    lines = JsonLines(sink)
    for event in [*EVENTS, PROGRESS, SweepEnded(*PLACE, "interrupted", 1, 1, 0, 1, 9.0)]:
        lines.take(event)
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in said] == [
        *("sweep_started", "cell_started", "cell_ended", "cell_started", "cell_failed", "cell_started"),
        *("cell_progress", "sweep_ended"),
    ]
    assert said[2] | {"seconds_left": 0} == {
        "event": "cell_ended",
        "cell": NONE.id,
        "name": "none/scenes@all",
        "done": 1,
        "total": 3,
        "accuracy": 0.9,
        "kept_tokens": 64.0,
        "seconds": 2.5,
        "seconds_left": 0,
    }
    assert said[4]["reason"] == "OSError: disk full"
    assert {name: said[6][name] for name in ("samples_done", "samples", "kept_tokens", "memory_mib", "worker")} == {
        "samples_done": 120,
        "samples": 512,
        "kept_tokens": 64.25,
        "memory_mib": 812.4,
        "worker": "cpu#1",
    }
    assert (said[0]["seconds_left"], said[7]["status"]) == (None, "interrupted")


def test_the_display_fits_where_stderr_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _ = output()
    with sweep_display(sink, quiet=True) as display:
        assert display is None
    with sweep_display(sink, quiet=False) as display:
        assert isinstance(display.__self__, Lines)
    monkeypatch.delenv("CI", raising=False)
    terminal = Output(talk=Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80))
    with sweep_display(terminal, quiet=False) as display:
        assert isinstance(display.__self__, LiveDisplay)
    monkeypatch.setenv("CI", "true")
    with sweep_display(terminal, quiet=False) as display:
        assert isinstance(display.__self__, Lines)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (ProgressForm.LINES, Lines),
        (ProgressForm.JSON, JsonLines),
        (ProgressForm.LIVE, LiveDisplay),
        (ProgressForm.NONE, None),
    ],
)
def test_the_display_that_was_asked_for(form: ProgressForm, kind: type | None) -> None:
    terminal = Output(talk=Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80))
    with sweep_display(terminal, quiet=False, form=form) as display:
        assert display is None if kind is None else isinstance(display.__self__, kind)


@pytest.mark.thorough
def test_stdout_is_one_document_and_stderr_json_lines(
    run: Commands, toy: None, sweep_file: Path, directory: Path
) -> None:
    words = ("sweep", str(sweep_file), "--out", str(directory), "--json", "--progress", "json")
    ran = run(*words)
    assert ran.json()["sweep"]["done"] == 3
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    kinds = [event["event"] for event in events if event["event"] != "cell_progress"]
    assert (kinds[0], kinds[-1]) == ("sweep_started", "sweep_ended")
    assert Counter(kinds[1:-1]) == {"cell_started": 5 + 3, "cell_answered": 3, "cell_ended": 3, "cell_failed": 2}
    parts = Counter(event["part"] for event in events if event["event"] == "cell_started")
    assert parts == {"answers": 5, "cost": 3}
    quiet = run(*words[:-2], "--quiet")
    assert quiet.json()["sweep"]["skipped"] == 5
    assert "finished before" not in quiet.err
