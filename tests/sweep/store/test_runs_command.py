"""`tokenprune runs`: status, retry, replay, export."""

from __future__ import annotations

import csv
import io
import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.commands import Commands, Ran, environment
from tests.sweep.fixtures import FinishedSweep, Workshop
from tests.sweep.privileges import without_privileges
from tokenprune.sweep import SweepStore, run_sweep


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("COLUMNS", "120")
    return Commands(capsys)


@pytest.fixture
def copy(finished: FinishedSweep, tmp_path: Path) -> Path:
    return finished.copy(tmp_path / "demo")


def test_status(run: Commands, copy: Path) -> None:
    ran = run("runs", "status", str(copy))
    assert ran.code == 0, ran.err
    assert "11 done, 2 failed, 2 refused, 0 pending of 15 cells" in ran.out
    assert "nobody runs it now" in ran.out
    assert "ZeroDivisionError: boom" in ran.out
    assert "BudgetError: no budget pleases me" in ran.out


def test_status_as_json(run: Commands, copy: Path) -> None:
    store = SweepStore(copy)
    with store.lock():
        document = run("runs", "status", str(copy), "--json").json()
    assert document["owner"].startswith("pid ")
    assert {state: document[state] for state in ("done", "failed", "refused", "pending")} == {
        "done": 11,
        "failed": 2,
        "refused": 2,
        "pending": 0,
    }
    assert Counter(entry["outcome"] for entry in document["without_result"]) == {"failed": 2, "refused": 2}
    assert document["tried_again"] == []


def test_status_tells_of_smaller_batches(run: Commands, copy: Path) -> None:
    store = SweepStore(copy)
    cell = next(cell for cell in store.plan() if store.state(cell.id) == "done")
    path = store.cell_directory(cell.id) / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**result, "attempts": 2, "batch_size": 1}), encoding="utf-8")
    assert "out of memory, 1 samples a batch" in run("runs", "status", str(copy)).out
    (entry,) = run("runs", "status", str(copy), "--json").json()["tried_again"]
    assert (entry["id"], entry["attempts"], entry["batch_size"]) == (cell.id, 2, 1)


@pytest.mark.thorough
def test_retry_uses_the_directorys_own_file(
    run: Commands, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'file' / 'missing' / 'x.db'}")
    small = {"budgets": [4], "efficiency": False, "lens": False, "overlays": 0}
    config = workshop.config(pruners=["first", "exploding", "refusing"], **small)
    directory = tmp_path / "run"
    run_sweep(config, directory=directory, host=workshop.host, track=False)
    before = {path: path.stat().st_mtime_ns for path in directory.glob("cells/*/*.json")}
    ran = run("runs", "retry", str(directory), "--quiet", "--json")
    assert ran.code == 3, ran.err
    document = ran.json()["sweep"]
    assert (document["done"], document["failed"], document["refused"], document["skipped"]) == (2, 1, 1, 3)
    assert f"`tokenprune runs retry {directory} --quiet --json` tries again" in ran.err
    changed = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {cell.id for cell in SweepStore(directory).plan() if cell.pruner == "exploding"}
    again = run("runs", "retry", str(directory), "--quiet", "--json", "--refused").json()["sweep"]
    assert again["skipped"] == 2


@pytest.mark.thorough
def test_replay_fills_another_store(
    run: Commands, copy: Path, migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    (tmp_path / "other.db").write_bytes(migrated_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    document = run("runs", "replay", str(copy), "--json").json()
    assert (document["logged"], document["uri"]) == (15, uri)
    assert "0 cells logged now" in run("runs", "replay", str(copy)).err


def test_export_one_row_per_cell(run: Commands, copy: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("runs", "export", str(copy)).out)))
    store = SweepStore(copy)
    assert [row["id"] for row in rows] == [cell.id for cell in store.plan()]
    for row in rows:
        result = store.result(row["id"])
        assert row["quality/accuracy"] == ("" if result is None else str(result["quality"]["accuracy"]))
        assert (row["error"] == "") == (row["state"] == "done")


def test_export_one_row_per_question_to_a_file(run: Commands, copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "samples.jsonl"
    ran = run("runs", "export", str(copy), "--samples", "--format", "jsonl", "--out", str(target))
    assert (ran.code, ran.out) == (0, "")
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 11 * 8
    assert {"cell", "pruner", "question", "prediction", "score"} <= set(rows[0])


@pytest.mark.parametrize("command", ["status", "retry", "replay", "export"])
def test_something_else_is_an_error(run: Commands, tmp_path: Path, command: str) -> None:
    ran = run("runs", command, str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert f"`{tmp_path}` is not a sweep directory" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_executor_option_needs_a_value(run: Commands, copy: Path) -> None:
    ran = run("runs", "retry", str(copy), "--executor-option", "actors")
    assert ran.code == 2
    assert "--executor-option must be `NAME=VALUE`, got `actors`" in ran.err


def test_alone_it_explains_itself(run: Commands) -> None:
    ran = run("runs")
    assert ran.code == 0
    assert "status" in ran.out


# --- disks that do not take it, and somebody else -------------------------------------------------------------------


def restricted(restrict: Callable[[], object], *words: str | Path) -> Ran:
    """Run a command as a process that may do less."""
    done = subprocess.run(
        [sys.executable, "-m", "tokenprune", *map(str, words)],
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        preexec_fn=restrict,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def told(ran: Ran) -> list[str]:
    """The two lines of a mistake that is the user's, or the machine's."""
    assert (ran.code, ran.out) == (2, ""), ran
    assert "Traceback" not in ran.err
    return [line for line in ran.err.splitlines() if line.startswith(("error: ", "hint: "))]


@pytest.fixture
def sweep_file(workshop: Workshop, tmp_path: Path) -> Path:
    data = workshop.data(pruners=["first"], budgets=[4], efficiency=False, lens=False, overlays=0)
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_read_only_directory_is_shown_and_not_written(copy: Path, sweep_file: Path) -> None:
    everything = [*copy.rglob("*"), copy]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        shown = restricted(without_privileges, "runs", "status", copy, "--json")
        exported = restricted(without_privileges, "runs", "export", copy)
        refused = [
            restricted(without_privileges, *words)
            for words in (("runs", "retry", copy), ("runs", "replay", copy), ("sweep", sweep_file, "--out", copy))
        ]
    finally:
        for path in reversed(everything):
            path.chmod(0o755)
    assert (shown.code, shown.json()["done"]) == (0, 11)
    assert (exported.code, len(exported.out.splitlines())) == (0, 16)
    for ran in refused:
        error, hint = told(ran)
        assert error == f"error: cannot write `{copy}/lock`: Permission denied"
        assert hint.startswith("hint: make room or make it writable, then run the same command again")


@pytest.mark.thorough
def test_a_full_disk_is_told_in_two_lines_and_the_same_command_continues(sweep_file: Path, tmp_path: Path) -> None:
    words = ("sweep", sweep_file, "--out", tmp_path / "run", "--quiet", "--json")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    error, hint = told(restricted(small, *words))
    assert error.startswith(f"error: cannot write `{tmp_path}/run/")
    assert error.endswith("File too large")
    assert hint.endswith("every finished cell is kept")
    again = restricted(lambda: None, *words)
    assert again.code == 0, again.err
    assert again.json()["sweep"]["done"] == 2


def test_a_second_command_is_told_who_runs_the_sweep(run: Commands, copy: Path, sweep_file: Path) -> None:
    with SweepStore(copy).lock():
        for words in (("sweep", str(sweep_file), "--out", str(copy)), ("runs", "retry", str(copy))):
            error, hint = told(run(*words))
            assert error.startswith("error: another process (pid ")
            assert error.endswith(f"runs a sweep in `{copy}`")
            assert hint == "hint: wait for it, or use another directory"
        assert run("runs", "status", str(copy)).code == 0


def test_torn_files_are_cells_to_run_again_and_nothing_else(run: Commands, copy: Path) -> None:
    store = SweepStore(copy)
    torn, headless = [cell for cell in store.plan() if store.state(cell.id) == "done"][-2:]
    result = store.cell_directory(torn.id) / "result.json"
    result.write_bytes(result.read_bytes()[:-40])
    samples = store.cell_directory(headless.id) / "samples.jsonl"
    samples.write_bytes(samples.read_bytes()[:-40])
    document = run("runs", "status", str(copy), "--json").json()
    assert {state: document[state] for state in ("done", "failed", "refused", "pending")} == {
        "done": 10,
        "failed": 2,
        "refused": 2,
        "pending": 1,
    }
    rows = run("runs", "export", str(copy), "--samples", "--json").json()["rows"]
    assert len(rows) == 10 * 8 - 1  # the last line of one is lost
