"""The executors `ray` and `slurm` on this machine: the same answers, store and events as `local`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune.cells.events import CellEnded, CellFailed, CellProgress, CellStarted, SweepEnded, SweepStarted
from tokenprune.errors import ConfigError, PrerequisiteError
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep
from tokenprune.sweep.executors.file_channel import INBOX, Heartbeat, LineReader, make_mailbox, post

SMALL: dict[str, Any] = {"budgets": [4], "efficiency": False, "lens": False, "overlays": 0}

#: `first` takes long enough for a look at how far it is.
PRUNERS = [{"name": "first", "options": {"pause": 0.8}, "label": "first"}, "random", "exploding"]

ON_THIS_MACHINE = [
    pytest.param("ray", {"actors": "2"}, id="ray", marks=pytest.mark.slow),
    pytest.param("slurm", {"cluster": "local", "jobs": "2"}, id="slurm-local", marks=pytest.mark.thorough),
    pytest.param("slurm", {"cluster": "debug"}, id="slurm-debug"),
]


def answers(store: SweepStore) -> dict[str, list[tuple[str, float]]]:
    return {
        cell.name: [(row["prediction"], row["score"]) for row in store.samples(cell.id)]
        for cell in store.plan()
        if store.state(cell.id) == "done"
    }


@pytest.fixture(scope="module")
def inline(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> SweepOutcome:
    config = workshop.config(pruners=PRUNERS, **SMALL)
    place = tmp_path_factory.mktemp("inline") / "run"
    return run_sweep(config, directory=place, host=workshop.host, track=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("executor", "options"),
    [
        pytest.param("local", {"workers": "2"}, id="local"),
        pytest.param("ray", {"actors": "1"}, id="one-actor"),
        *ON_THIS_MACHINE,
    ],
)
def test_the_same_as_here(
    workshop: Workshop, inline: SweepOutcome, tmp_path: Path, executor: str, options: dict[str, str]
) -> None:
    for package in {"slurm": ["submitit"], "ray": ["ray"]}.get(executor, []):
        pytest.importorskip(package)
    events: list[Any] = []
    outcome = run_sweep(
        workshop.config(pruners=PRUNERS, **SMALL),
        directory=tmp_path / "run",
        host=workshop.host,
        display=events.append,
        executor=executor,
        executor_options=options,
        track=False,
    )
    assert (outcome.done, outcome.failed, outcome.pending) == (3, 1, 0)
    assert answers(SweepStore(outcome.directory)) == answers(SweepStore(inline.directory))
    kinds = Counter(type(event) for event in events if not isinstance(event, CellProgress))
    assert kinds == {SweepStarted: 1, CellStarted: 4, CellEnded: 3, CellFailed: 1, SweepEnded: 1}
    told = [event for event in events if isinstance(event, CellProgress) and event.cell.pruner == "first"]
    assert told
    for event in told:
        assert (event.samples, event.kept_tokens) == (8, 4.0)
        assert 3 <= event.samples_done <= 8
        assert event.samples_per_s is not None
        assert event.memory_mib is not None
        assert event.memory_mib > 50
    pids = {
        (SweepStore(outcome.directory).result(event.cell.id) or {})["worker"]["pid"]
        for event in events
        if isinstance(event, CellEnded)
    }
    assert (os.getpid() in pids) == (options.get("cluster") == "debug")
    assert not (outcome.directory / "mail").exists() or not list((outcome.directory / "mail").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("executor", "options"), ON_THIS_MACHINE[:2])
def test_a_cell_that_kills_its_workers_is_set_aside(
    workshop: Workshop, tmp_path: Path, executor: str, options: dict[str, str]
) -> None:
    outcome = run_sweep(
        workshop.config(pruners=["dying", "first"], **SMALL),
        directory=tmp_path / "run",
        host=workshop.host,
        executor=executor,
        executor_options=options,
        track=False,
    )
    assert (outcome.done, outcome.failed) == (2, 1)
    store = SweepStore(outcome.directory)
    errors = [store.error(cell.id) for cell in store.plan() if cell.pruner == "dying"]
    assert errors[0] is not None
    assert (errors[0]["type"], errors[0]["attempts"]) == ("WorkerDied", 3)


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("executor", "package", "options"),
    [
        pytest.param("slurm", "submitit", {"cluster": "local", "jobs": "1"}, id="slurm-local"),
        pytest.param("ray", "ray", {"actors": "1"}, id="ray", marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_costs_a_batch(
    workshop: Workshop, tmp_path: Path, executor: str, package: str, options: dict[str, str]
) -> None:
    """It is killed in the second batch of a cell; another one goes on there."""
    pytest.importorskip(package)
    gate = tmp_path / "gate"
    gate.write_text("1", encoding="utf-8")
    pruners = [{"name": "first", "options": {"gate": str(gate)}}]
    attempts: list[int] = []

    def display(event: Any) -> None:
        if isinstance(event, CellProgress) and event.cell.pruner == "first" and gate.exists():
            result = SweepStore(event.directory).result(str(event.cell.reference)) or {}
            os.kill(result["worker"]["pid"], signal.SIGKILL)
            gate.unlink()
        if isinstance(event, CellStarted) and event.cell.pruner == "first":
            attempts.append(event.attempt)

    outcome = run_sweep(
        workshop.config(pruners=pruners, **SMALL),
        directory=tmp_path / "run",
        host=workshop.host,
        display=display,
        executor=executor,
        executor_options=options,
        track=False,
    )
    assert (outcome.done, outcome.failed) == (2, 0)
    assert attempts[-1] <= 2
    store = SweepStore(outcome.directory)
    _, cell = store.plan()
    assert (store.result(cell.id) or {})["resumed"] == 3
    assert (tmp_path / "gate.calls").stat().st_size <= 4  # of three batches, at most the one at hand twice
    assert [row["index"] for row in store.samples(cell.id)] == list(range(8))


def test_the_options_of_the_file_count_unless_flags_say_otherwise(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    wrong = {"name": "slurm", "options": {"cluster": "debug", "jobs": 0}}
    config = workshop.config(**{**SMALL, "pruners": ["first"], "executor": wrong})

    def go(**changes: Any) -> SweepOutcome:
        return run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False, **changes)

    with pytest.raises(ConfigError, match="`jobs` must be a whole number of at least 1, got `0`"):
        go()
    with pytest.raises(ConfigError, match=r"`jobs` must be .* got `x`"):
        go(executor="slurm", executor_options={"jobs": "x"})
    assert go(executor_options={"jobs": "1"}).done == 2  # `cluster: debug` of the file still counts
    with pytest.raises(ConfigError, match="unknown option `jobs` of executor `inline`"):
        go(executor="inline", executor_options={"jobs": "1"})
    assert go(executor="inline").status == "complete"  # another executor has nothing to do with them
    assert SweepStore(tmp_path / "run").header().config["executor"] == wrong


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = workshop.config(pruners=["first"], **SMALL)
    with pytest.raises(PrerequisiteError, match=f"the executor `{executor}` needs the package `{package}`") as caught:
        run_sweep(config, directory=tmp_path / "run", host=workshop.host, executor=executor, track=False)
    assert caught.value.hint == f"pip install 'tokenprune-vlm[{executor}]'"


@pytest.mark.parametrize(
    ("executor", "options", "message"),
    [
        ("ray", {"adress": "auto"}, "unknown option `adress` of executor `ray`, did you mean `address`?"),
        ("ray", {"actors": "many"}, "`actors` must be a whole number of at least 1, got `many`"),
        ("slurm", {"cluster": "kubernetes"}, "`cluster` must be one of slurm, local, debug, got `kubernetes`"),
        ("slurm", {"cluster": "local", "cpus": "0"}, "`cpus` must be a whole number of at least 1, got `0`"),
        ("local", {"anything": "1"}, "unknown option `anything` of executor `local`"),
        ("local", {"workers": "0"}, "`workers` must be a whole number of at least 1, got `0`"),
    ],
)
def test_wrong_options_are_told(
    workshop: Workshop, tmp_path: Path, executor: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_sweep(
            workshop.config(pruners=["first"], **SMALL),
            directory=tmp_path / "run",
            host=workshop.host,
            executor=executor,
            executor_options=options,
            track=False,
        )
    assert caught.value.message == message


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_ray_address_where_nobody_answers_is_told_at_once(workshop: Workshop, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(PrerequisiteError, match=f"nobody answers at the Ray address `{address}`") as caught:
            run_sweep(
                workshop.config(pruners=["first"], budgets=[4], efficiency=False),
                directory=tmp_path / "run",
                host=workshop.host,
                executor="ray",
                executor_options={"address": address},
                track=False,
            )
    assert "ray status" in caught.value.hint


def test_without_slurm_it_says_so(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    config = workshop.config(pruners=["first"], **SMALL)
    with pytest.raises(PrerequisiteError, match="no Slurm here"):
        run_sweep(config, directory=tmp_path / "run", host=workshop.host, executor="slurm", track=False)


def test_a_line_that_is_not_complete_waits(tmp_path: Path) -> None:
    make_mailbox(tmp_path / "box")
    path = tmp_path / "box" / INBOX
    lines = LineReader(path)
    post(path, {"number": 1})
    with path.open("ab") as stream:
        stream.write(b'{"number": ')
    assert lines.new() == [{"number": 1}]
    assert lines.new() == []
    with path.open("ab") as stream:
        stream.write(b"2}\n")
    assert lines.new() == [{"number": 2}]


def test_silence_is_measured_by_the_readers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("tokenprune.sweep.executors.file_channel.time.monotonic", lambda: now)
    sender, reader = Heartbeat(tmp_path / "heartbeat"), Heartbeat(tmp_path / "heartbeat")
    sender.beat()
    assert not reader.silent()
    now += 299
    assert not reader.silent()
    sender.beat()
    assert not reader.silent()
    now += 301
    assert reader.silent()
