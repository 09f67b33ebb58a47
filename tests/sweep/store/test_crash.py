"""What a crash, a full disk, a read-only folder, a wrong clock and a second process do to a sweep: nothing bad."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from errno import ENOSPC
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.sweep.a_cell import CELL
from tests.sweep.fixtures import Workshop
from tests.sweep.privileges import without_privileges
from tokenprune.cells.events import CellEnded, CellStarted
from tokenprune.errors import ConfigError
from tokenprune.metrics.distribution import FirstToken
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep
from tokenprune.sweep.store import lock
from tokenprune.sweep.store.atomic_io import StorageError, append_line, write_text
from tokenprune.sweep.store.lock import TakenOverError
from tokenprune.sweep.store.result_store import read_jsonl

Run = Callable[..., SweepOutcome]
ROOT = Path(__file__).resolve().parents[3]


def python(code: str, *arguments: str | Path, **settings: Any) -> subprocess.Popen[str]:
    """A process that runs some code with the modules of this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,
    )


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(tmp_path / "store")
    made.open_sweep({"models": ["scenes"]}, [CELL])
    return made


# --- crashes --------------------------------------------------------------------------------------------------------


def test_a_result_that_is_torn_at_any_byte_counts_as_none(store: SweepStore) -> None:
    store.begin_cell(CELL)
    store.write_result(CELL, {"quality": {"accuracy": 0.5}})
    path = store.cell_directory(CELL.id) / "result.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # but for the line end after the last brace
        path.write_bytes(whole[:length])
        assert store.state(CELL.id) == "pending", length
    path.write_bytes(whole)
    assert store.state(CELL.id) == "done"


WRITER = """
import sys
from tests.sweep.a_cell import CELL
from tokenprune.sweep.store.result_store import SweepStore
store = SweepStore(sys.argv[1])
number = 0
print("ready", flush=True)
while True:
    number += 1
    store.begin_cell(CELL)
    store.write_result(CELL, {"number": number, "padding": [number] * 20000, "quality": {}})
    store.begin_cell(CELL)
    store.write_error(CELL, {"outcome": "failed", "number": number, "padding": [number] * 20000})
"""


@pytest.mark.thorough
def test_kill_at_random_moments_leaves_whole_files_only(store: SweepStore) -> None:
    random, seen = Random(0), Counter[str]()
    for _ in range(12):
        writer = python(WRITER, store.directory)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 0.2))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        folder = store.cell_directory(CELL.id)
        for path in folder.glob("*.json"):
            data = json.loads(path.read_text(encoding="utf-8"))
            assert data["padding"] == [data["number"]] * 20000
        seen[store.state(CELL.id)] += 1
        store.begin_cell(CELL)
        assert list(folder.iterdir()) == []  # nothing that a killed writer left stays either
    assert sum(seen.values()) == 12


def test_a_torn_event_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, '{"event": 1}')
    append_line(path, '{"event": 2}')
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        append_line(path, '{"event": 3}')
        rows = [row["event"] for row in read_jsonl(path)]
        assert rows == [*[1, 2][: whole[:length].count(b"\n")], 3]


# --- disks ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_at_any_write_costs_no_finished_cell(
    sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th write fails for every n; then there is room again, and the same command completes the same sweep."""
    changes: dict[str, Any] = {"pruners": ["first"], "budgets": [4], "efficiency": False, "overlays": 1}
    sync, left = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        sync(descriptor)

    said: list[str] = []
    for writes in range(0, 60, 2):
        left = writes
        with monkeypatch.context() as patch:
            patch.setattr("tokenprune.sweep.store.atomic_io.os.fsync", full)
            try:
                outcome = sweep(**changes)
            except StorageError as error:
                said.append(f"{error.message} {error.hint}")
            else:
                assert (outcome.done, outcome.failed) == (2, 0)
                break
        store = SweepStore(tmp_path / "run")
        assert not list((tmp_path / "run").rglob(".*.tmp"))
        if store.exists():
            assert {store.state(cell.id) for cell in store.plan()} <= {"done", "pending"}
    else:
        raise AssertionError("it never had room enough")
    assert len(said) > 3
    assert all("No space left on device" in line and "every finished cell is kept" in line for line in said)


LIMITED = """
import sys
from tokenprune.errors import TokenPruneError
from tokenprune.plugins import load_host
from tokenprune.sweep import load_config, run_sweep
host = load_host()
try:
    outcome = run_sweep(load_config(sys.argv[1], host), directory=sys.argv[2], host=host, track=False)
    print("outcome", outcome.status, outcome.done)
except TokenPruneError as error:
    print("error:", error.message)
"""


@pytest.mark.thorough
def test_workers_on_a_full_disk_stop_the_sweep_and_it_continues(workshop: Workshop, tmp_path: Path) -> None:
    data = workshop.data(
        pruners=["first"],
        budgets=[4],
        executor="local",
        tasks=[{"name": "toy", "options": {"size": 40}}],
        batch_size=20,
        efficiency=False,
        lens=False,
        overlays=0,
    )
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    small = python(
        LIMITED,
        path,
        tmp_path / "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),  # the samples take more
    )
    output, _ = small.communicate(timeout=200)
    assert "error: cannot write `" in output
    assert "File too large" in output
    store = SweepStore(tmp_path / "run")
    assert [store.state(cell.id) for cell in store.plan()] == ["pending", "pending"]
    again, _ = python(LIMITED, path, tmp_path / "run").communicate(timeout=200)
    assert "outcome complete 2" in again


LOCKED = """
import sys
from tokenprune.errors import TokenPruneError
from tokenprune.sweep.store.result_store import SweepStore
store = SweepStore(sys.argv[1])
print(len(store.plan()), store.state(store.plan()[0].id))
try:
    with store.lock():
        print("locked")
except TokenPruneError as error:
    print(type(error).__name__, error.message)
"""


def test_a_read_only_folder_can_be_read_and_is_refused(store: SweepStore) -> None:
    store.write_error(CELL, {"outcome": "failed", "message": "boom"})
    everything = [*store.directory.rglob("*"), store.directory]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        output, _ = python(LOCKED, store.directory, preexec_fn=without_privileges).communicate(timeout=120)
    finally:
        for path in reversed(everything):
            path.chmod(0o755)
    assert output.splitlines() == [
        "1 failed",
        f"StorageError cannot write `{store.directory}/lock`: Permission denied",
    ]


# --- clocks ---------------------------------------------------------------------------------------------------------


class BackwardClock(datetime):
    """Every look at it is a minute earlier."""

    moment = datetime(2030, 1, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        cls.moment -= timedelta(minutes=1)
        return cls.moment if tz is not None else cls.moment.replace(tzinfo=None)


@pytest.mark.thorough
def test_a_clock_that_runs_backwards(workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "sweep.worker.cell_runner",
        "sweep.store.result_store",
        "tracking.jsonl_tracker",
        "tracking.mlflow_runs",
    ):
        monkeypatch.setattr(f"tokenprune.{module}.datetime", BackwardClock)
    config = workshop.config(pruners=["first", "exploding"], budgets=[4])
    outcome = run_sweep(config, directory=directory, host=workshop.host)
    assert (outcome.done, outcome.failed, outcome.problems) == (2, 1, ())
    again = run_sweep(config, directory=directory, host=workshop.host, retry_failed=True)
    assert (again.done, again.skipped, again.problems) == (2, 2, ())
    events = read_jsonl(directory / "events.jsonl")
    times = [event["time"] for event in events]
    assert times == sorted(times, reverse=True)
    assert [event["event"] for event in events[:4]] == ["sweep_start", "cell_start", "cell_start", "cell_end"]
    store = SweepStore(directory)
    assert all((store.result(cell.id) or {"seconds": 1})["seconds"] > 0 for cell in store.plan())


# --- two processes --------------------------------------------------------------------------------------------------

THIS_PROCESS = f"pid {os.getpid()} on {platform.node()}"

HOLDER = """
import subprocess, sys, time
from tokenprune.sweep.store.result_store import SweepStore
with (store := SweepStore(sys.argv[1])).lock():
    subprocess.Popen(["sleep", sys.argv[2]], pass_fds=(store.lock_descriptor,), stderr=-3, stdout=-3)
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_killed_owner_is_waited_for_until_its_workers_are_gone(store: SweepStore) -> None:
    holder = python(HOLDER, store.directory, "3")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    assert store.owner().startswith(f"pid {holder.pid} on ")
    with pytest.raises(ConfigError, match=f"another process \\(pid {holder.pid} on"), store.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    began = time.monotonic()
    with store.lock():
        assert time.monotonic() - began > 0.5  # its `sleep`, which a worker stands for, still had the lock
    assert store.owner() == ""


def test_a_process_that_has_the_number_of_a_killed_owner_is_not_taken_for_it(store: SweepStore) -> None:
    holder = python(HOLDER, store.directory, "2")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    write_text(store.directory / "owner", THIS_PROCESS + "\n")  # as if this process had its number now
    assert store.owner() == THIS_PROCESS  # its `sleep`, which a worker stands for, has the lock
    with store.lock():
        pass


def test_workers_that_do_not_leave_are_told_apart_from_a_running_sweep(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ORPHANS_S", 0.3)
    holder = python(HOLDER, store.directory, "3")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with pytest.raises(ConfigError, match=r"workers of another process .*, which ended, still run"), store.lock():
        pass
    assert (store.directory / "lease").read_text(encoding="utf-8").strip()  # that of the killed one


def test_a_look_at_the_owner_refuses_nobody(store: SweepStore) -> None:
    """It holds the lock for a moment, and so does another look."""
    with store.lock():
        pass
    done = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(store.owner())

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with store.lock():
                time.sleep(0.005)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert seen <= {"", THIS_PROCESS}


def test_the_lock_is_no_way_to_change_another_file(store: SweepStore, tmp_path: Path) -> None:
    target = tmp_path / "profile"
    target.write_text("mine\n", encoding="utf-8")
    (store.directory / "lock").symlink_to(target)
    with pytest.raises(StorageError, match="cannot write"), store.lock():
        pass
    assert target.read_text(encoding="utf-8") == "mine\n"


def test_whoever_lost_the_directory_writes_nothing(store: SweepStore) -> None:
    with store.lock():
        late = SweepStore(store.directory, token=store.token)
        late.begin_cell(CELL)
    with store.lock():
        store.begin_cell(CELL)
        store.write_result(CELL, {"by": "the new owner", "quality": {}})
        for write in (late.write_result, late.write_answers, late.write_overlays, late.write_error):
            with pytest.raises(TakenOverError, match="has taken over"):
                write(CELL, {"by": "the old worker"})
        with pytest.raises(TakenOverError, match="has taken over"):
            late.write_samples(CELL, [{"by": "the old worker"}])
        with pytest.raises(TakenOverError, match="has taken over"):
            late.write_first_token(CELL, FirstToken(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32)))
        with pytest.raises(TakenOverError, match="has taken over"):
            late.begin_cell(CELL)
    assert (store.result(CELL.id) or {})["by"] == "the new owner"
    assert [path.name for path in store.cell_directory(CELL.id).iterdir()] == ["result.json"]


def test_the_lease_is_looked_at_last(store: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take long to sync; who loses the directory meanwhile does not show what it wrote."""
    with store.lock():
        late = SweepStore(store.directory, token=store.token)
        late.begin_cell(CELL)
        sync, slow = os.fsync, True

        def taken_over(descriptor: int) -> None:
            nonlocal slow
            sync(descriptor)
            if slow:
                slow = False
                write_text(store.directory / "lease", "another\n")

        monkeypatch.setattr("tokenprune.sweep.store.atomic_io.os.fsync", taken_over)
        with pytest.raises(TakenOverError, match="has taken over") as caught:
            late.write_result(CELL, {"quality": {}})
    assert caught.value.hint
    assert list(store.cell_directory(CELL.id).iterdir()) == []


@pytest.mark.thorough
def test_a_lease_that_is_gone_ends_the_sweep_with_one_error(workshop: Workshop, tmp_path: Path) -> None:
    """Not with one dead worker after the other: nobody has taken the directory over."""

    def remove(event: Any) -> None:
        if isinstance(event, CellEnded):
            (tmp_path / "run" / "lease").unlink()

    config = workshop.config(pruners=["first"], budgets=[4], executor="local", efficiency=False, share=1)
    with pytest.raises(StorageError, match="lease` is gone") as caught:
        run_sweep(config, directory=tmp_path / "run", host=workshop.host, display=remove, track=False)
    assert "run the same command again" in caught.value.hint
    again = run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False)
    assert (again.done, again.skipped) == (2, 1)


@pytest.mark.thorough
def test_a_sweep_that_was_taken_over_ends_with_one_error(workshop: Workshop, tmp_path: Path) -> None:
    """Not with one dead worker after the other."""
    started: list[int] = []

    def take_over(event: Any) -> None:
        if isinstance(event, CellStarted):
            started.append(event.attempt)
            write_text(tmp_path / "run" / "lease", "another\n")

    config = workshop.config(pruners=["none"], executor="local", efficiency=False)
    with pytest.raises(TakenOverError, match="has taken over") as caught:
        run_sweep(config, directory=tmp_path / "run", host=workshop.host, display=take_over, track=False)
    assert caught.value.hint == "wait for it, or use another directory"
    assert started == [1]
    assert not list((tmp_path / "run").glob("cells/*/*"))


@pytest.mark.thorough
def test_two_sweeps_at_once_on_one_directory(workshop: Workshop, tmp_path: Path) -> None:
    """One of them runs, the other is told so; together they leave a complete directory."""
    data = workshop.data(pruners=["first", "grid"], budgets=[4], executor="inline", efficiency=False)
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    both = [python(LIMITED, path, tmp_path / "run") for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert any("outcome complete 3" in output for output in outputs), outputs
    assert all("outcome complete 3" in output or "error: another process (pid" in output for output in outputs), outputs
    store = SweepStore(tmp_path / "run")
    assert [store.state(cell.id) for cell in store.plan()] == ["done"] * 3
