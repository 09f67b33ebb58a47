"""What a running sweep looks like, from events."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tokenprune.cli.display import Board, Lines, sweep_display
from tokenprune.cli.output import Output
from tokenprune.sweep.events import CellEnded, CellFailed, CellStarted, Event, SweepEnded, SweepStarted
from tokenprune.sweep.plan import Cell

PLACE = (Path("run"), "id")


def cell(pruner: str, ratio: float | None, *, task: str = "scenes", seed: int = 0) -> Cell:
    return Cell(
        model="scenes",
        model_digest="m",
        task=task,
        task_version="1",
        task_digest="t",
        task_options={},
        samples=8,
        pruner=pruner,
        label=pruner,
        options={},
        distribution="tokenprune",
        distribution_version="1",
        budget_ratio=ratio,
        budget_tokens=None,
        account="kept",
        seed=seed,
        dtype="float32",
        attention="sdpa",
        positions=None,
        batch_size=4,
        max_new_tokens=3,
    )


NONE, RANDOM, HALF = cell("none", None), cell("random", 0.25), cell("random", 0.5)


def ended(which: Cell, accuracy: float, done: int) -> CellEnded:
    result = {"quality": {"accuracy": accuracy}, "tokens": {"layer_average": 64.0}, "seconds": 2.5}
    return CellEnded(*PLACE, which, result, done, 3)


EVENTS: list[Event] = [
    SweepStarted(*PLACE, "demo", {}, (NONE, RANDOM, HALF), {}),
    CellStarted(*PLACE, NONE, "cpu#1", 0, 3),
    ended(NONE, 0.9, 1),
    CellStarted(*PLACE, RANDOM, "cpu#1", 1, 3),
    CellFailed(*PLACE, RANDOM, "failed", {"type": "OSError", "message": "disk full\nmore"}, 2, 3),
    CellStarted(*PLACE, HALF, "cpu#1", 2, 3),
]


def picture(board: Board) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(board.render())
    return console.file.getvalue()


def test_the_board_fills_in_pruners_by_budgets() -> None:
    board = Board()
    for event in EVENTS:
        board.take(event)
    shown = picture(board)
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:6] in ("none  ", "random")}
    assert rows == {"none": ["0.900"], "random": ["failed", "running"]}
    assert "2/3 cells" in shown
    assert "left" in shown
    assert "running  cpu#1  random/scenes@50%" in shown
    assert "failed: random/scenes@25%: OSError: disk full" in shown
    assert "more" not in shown
    board.take(ended(HALF, 0.5, 3))
    board.take(SweepEnded(*PLACE, "failures", 2, 1, 0, 0, 9.0))
    shown = picture(board)
    assert "3/3 cells" in shown
    assert "running" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_board_tells_tasks_and_seeds_apart() -> None:
    board = Board()
    other = cell("random", 0.25, task="video", seed=1)
    board.take(SweepStarted(*PLACE, "demo", {}, (RANDOM, other), {RANDOM.id: "done"}))
    shown = picture(board)
    assert "random scenes/scenes" in shown
    assert "random scenes/video seed 1" in shown
    assert "1/2 cells" in shown


def output() -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    return Output(data=Console(file=io.StringIO()), talk=Console(file=stream, width=80, highlight=False)), stream


def test_lines_are_one_per_finished_cell() -> None:
    sink, stream = output()
    lines = Lines(sink)
    for event in EVENTS:
        lines.take(event)
    assert stream.getvalue().splitlines() == [
        "sweep `demo`: 3 cells, 0 finished before, 3 to run",
        "[1/3] ok       none/scenes@all  accuracy 0.900  tokens 64.0  2.5 s",
        "[2/3] failed   random/scenes@25%  OSError: disk full",
    ]


def test_the_display_fits_where_stderr_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _ = output()
    with sweep_display(sink, quiet=True) as display:
        assert display is None
    with sweep_display(sink, quiet=False) as display:
        assert isinstance(display.__self__, Lines)
    monkeypatch.delenv("CI", raising=False)
    terminal = Output(talk=Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80))
    with sweep_display(terminal, quiet=False) as display:
        assert isinstance(display.__self__, Board)
    monkeypatch.setenv("CI", "true")
    with sweep_display(terminal, quiet=False) as display:
        assert isinstance(display.__self__, Lines)
