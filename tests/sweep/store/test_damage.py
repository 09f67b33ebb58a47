"""Files of a sweep directory that a power cut, a disk or a person damaged: the same command makes them anew."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep, Workshop
from tokenprune.cells.cell import Cell
from tokenprune.cells.events import CellStarted
from tokenprune.sweep import SweepOutcome, SweepStore
from tokenprune.sweep.executors.inline import InlineExecutor
from tokenprune.sweep.messages import CellFinished, ExecutorEvent

Run = Callable[..., SweepOutcome]
SMALL: dict[str, Any] = {"pruners": ["first"], "budgets": [4], "efficiency": False, "lens": False, "overlays": 0}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("COLUMNS", "200")
    return Commands(capsys)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def blank_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\0" * 20 + b"\n", *lines[2:]]))


def swap(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[1:], lines[0]]))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "pruner", "damage"),
    [
        ("first_token.npz", "none", empty),
        ("first_token.npz", "none", cut),
        ("first_token.npz", "none", remove),
        ("samples.jsonl", "first", cut),
        ("samples.jsonl", "first", empty),
        ("samples.jsonl", "first", blank_middle),
        ("samples.jsonl", "first", swap),
        ("samples.jsonl", "none", remove),
    ],
)
def test_an_answered_cell_whose_files_are_damaged_is_asked_again(
    sweep: Run, name: str, pruner: str, damage: Callable[[Path], None]
) -> None:
    store = SweepStore(sweep(**SMALL).directory)
    (cell,) = [cell for cell in store.plan() if cell.pruner == pruner]
    path = store.cell_directory(cell.id) / name
    whole = path.read_bytes()
    damage(path)
    events: list[Any] = []
    again = sweep(display=events.append, **SMALL)
    assert [event.cell.id for event in events if isinstance(event, CellStarted)] == [cell.id]
    assert (again.done, again.failed, again.skipped) == (2, 0, 1)
    assert again.changes == (f"1 cell is asked again: files of `cells/{cell.id}` are damaged",)
    if name == "samples.jsonl":
        assert path.read_bytes() == whole
    assert sweep(**SMALL).skipped == 2


def test_answers_without_their_samples_are_not_measured(sweep: Run) -> None:
    changes = {**SMALL, "efficiency": {"repeats": 1, "max_repeats": 1, "warmup": 0, "new_tokens": 1}}
    store = SweepStore(sweep(**changes).directory)
    for cell in store.plan():
        folder = store.cell_directory(cell.id)
        (folder / "result.json").rename(folder / "answers.json")
        empty(folder / "samples.jsonl")
    events: list[Any] = []
    assert sweep(display=events.append, **changes).done == 2
    parts = [event.phase for event in events if isinstance(event, CellStarted)]
    assert sorted(parts) == ["answers", "answers", "cost", "cost"]


def test_a_cell_whose_reference_is_damaged_says_how_to_go_on(sweep: Run, workshop: Workshop) -> None:
    directory = sweep(**{**SMALL, "pruners": ["none"]}).directory
    store = SweepStore(directory)

    def damage(event: Any) -> None:
        if isinstance(event, CellStarted):
            empty(store.cell_directory(str(event.cell.reference)) / "first_token.npz")

    assert sweep(display=damage, **SMALL).failed == 1
    (error,) = [store.error(cell.id) for cell in store.plan() if cell.pruner == "first"]
    assert error is not None
    assert "first_token.npz` cannot be read" in error["message"]
    assert "failed cells retried" in error["hint"]
    assert sweep(retry_failed=True, **SMALL).done == 2


# --- the commands -----------------------------------------------------------------------------------------------------


def told(run: Commands, *words: str) -> list[str]:
    """Error and hint of a command that must not end with a traceback."""
    ran = run(*words)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert "Traceback" not in ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    return lines


@pytest.mark.parametrize("content", ['{"schema": 1}', "[]", "", '{"schema": 1, "sweep_id": "a", "name": "b"}'])
@pytest.mark.parametrize("command", ["status", "retry", "replay", "export"])
def test_a_damaged_sweep_file(
    run: Commands, finished: FinishedSweep, tmp_path: Path, content: str, command: str
) -> None:
    copy = finished.copy(tmp_path / "demo")
    (copy / "sweep.json").write_text(content, encoding="utf-8")
    assert "sweep.json` is damaged" in told(run, "runs", command, str(copy))[0]


@pytest.mark.parametrize("line", ["[]", "null", "7", '"text"'])
def test_a_plan_with_something_else_in_it(run: Commands, finished: FinishedSweep, tmp_path: Path, line: str) -> None:
    copy = finished.copy(tmp_path / "demo")
    with (copy / "plan.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    assert "plan.jsonl` is damaged" in told(run, "runs", "status", str(copy))[0]


def test_a_result_with_nothing_in_it_is_none(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "demo")
    store = SweepStore(copy)
    cell = next(cell for cell in store.plan() if store.state(cell.id) == "done")
    path = store.cell_directory(cell.id) / "result.json"
    path.write_text(json.dumps({"schema": 1, "id": cell.id}), encoding="utf-8")
    assert run("runs", "status", str(copy), "--json").json()["pending"] == 1
    rows = run("runs", "export", str(copy), "--json").json()["rows"]
    assert [row["state"] for row in rows if row["id"] == cell.id] == ["pending"]


def test_a_place_that_is_not_there_is_not_called_full(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    error, hint = told(run, "runs", "export", str(finished.directory), "--out", str(tmp_path / "missing" / "x.csv"))
    assert "No such file or directory" in error
    assert hint.startswith("hint: make its folder, or name another place")


def test_a_dry_run_says_what_is_damaged_and_why_cells_are_new(
    run: Commands, workshop: Workshop, sweep: Run, tmp_path: Path
) -> None:
    store = SweepStore(sweep(**SMALL).directory)
    broken, cell = store.plan()
    empty(store.cell_directory(broken.id) / "samples.jsonl")
    path = tmp_path / "sweep.yaml"
    words = ("sweep", str(path), "--out", str(store.directory), "--dry-run")
    before = {each: each.stat().st_mtime_ns for each in store.directory.rglob("*")}

    path.write_text(json.dumps(workshop.data(**SMALL)), encoding="utf-8")
    document = run(*words, "--json").json()
    assert document["changes"] == [f"1 cell is asked again: files of `cells/{broken.id}` are damaged"]
    assert {each["id"]: each["state"] for each in document["cells"]} == {broken.id: "pending", cell.id: "done"}

    path.write_text(json.dumps(workshop.data(**{**SMALL, "batch_size": 2})), encoding="utf-8")
    ran = run(*words)
    assert "2 cells are new: `batch_size` changed from 3 to 2" in ran.err
    assert "2 cells, 2 to run" in ran.err
    assert {each: each.stat().st_mtime_ns for each in store.directory.rglob("*")} == before


# --- other machines ---------------------------------------------------------------------------------------------------


def hiding(monkeypatch: pytest.MonkeyPatch, hide: Callable[[Path], None]) -> None:
    """Do something to a result just before its worker says that it is there."""
    whole = InlineExecutor.run

    def run(self: InlineExecutor, cells: Sequence[Cell]) -> Iterator[ExecutorEvent]:
        for event in whole(self, cells):
            if isinstance(event, CellFinished):
                hide(self._store.cell_directory(event.cell.id) / "result.json")
            yield event

    monkeypatch.setattr(InlineExecutor, "run", run)


def test_a_result_that_shows_up_late_counts(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def hide(path: Path) -> None:
        hidden = Path(path.rename(path.with_name("hidden")))
        threading.Timer(0.6, hidden.rename, (path,)).start()

    hiding(monkeypatch, hide)
    assert sweep(**SMALL).done == 2


def test_a_result_that_never_shows_up_is_a_failure(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.sweep.store.result_store.VISIBLE_S", 0.3)
    hiding(monkeypatch, remove)
    outcome = sweep(**{**SMALL, "pruners": ["none"]})
    assert (outcome.done, outcome.failed) == (0, 1)
    store = SweepStore(outcome.directory)
    assert (store.error(store.plan()[0].id) or {})["type"] == "LostResult"
