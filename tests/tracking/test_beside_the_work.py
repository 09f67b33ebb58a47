"""Trackers cost a running sweep nothing that grows, and a store that was away gets what it missed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.plugins import CORE
from tests.sweep.fixtures import FinishedSweep, Workshop
from tests.tracking.places import place_of
from tokenprune import hookimpl
from tokenprune.cells.events import CellEnded, CellStarted, SweepEnded, SweepStarted
from tokenprune.plugins import load_host
from tokenprune.sweep import SweepStore, run_sweep
from tokenprune.sweep.worker import cell_cost as measuring
from tokenprune.tracking import mlflow_tracker
from tokenprune.tracking.mlflow_runs import RunWriter
from tokenprune.tracking.mlflow_store import open_store


def test_a_slow_tracker_holds_up_no_cell(workshop: Workshop, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    ended: list[str] = []

    class Slow:
        @hookimpl
        def on_sweep_start(self, event: SweepStarted) -> None:
            told.append(("start", threading.current_thread().name))

        @hookimpl
        def on_cell_end(self, event: CellEnded) -> None:
            time.sleep(1.5)
            told.append((event.cell.name, threading.current_thread().name))

        @hookimpl
        def on_sweep_end(self, event: SweepEnded) -> None:
            told.append(("end", threading.current_thread().name))

    def display(event: Any) -> None:
        if isinstance(event, CellEnded):
            ended.append(event.cell.name)
            assert event.cell.name not in [name for name, _ in told]

    host = load_host(defaults=CORE)
    host.add(Slow(), "slow")
    config = workshop.config(pruners=["first", "grid"], budgets=[4], efficiency=False, lens=False)
    began = time.monotonic()
    outcome = run_sweep(config, directory=tmp_path / "run", host=host, display=display)
    assert outcome.problems == ()
    assert [name for name, _ in told] == ["start", *ended, "end"]  # in order, and none is lost
    assert {thread for _, thread in told} == {"tokenprune-trackers"}
    assert time.monotonic() - began > 4.5  # the end of the sweep is waited for
    assert 4.5 < outcome.tracking_s < outcome.seconds
    assert 0.0 < outcome.tracking_wait_s < outcome.seconds
    assert outcome.to_json()["tracking_s"] == outcome.tracking_s


def test_workers_start_while_a_tracker_opens_its_store(workshop: Workshop, tmp_path: Path) -> None:
    order: list[str] = []
    begun = threading.Event()

    class Opening:
        @hookimpl
        def on_sweep_start(self, event: SweepStarted) -> None:
            order.append("opened" if begun.wait(60) else "opened before any cell")

    def display(event: Any) -> None:
        if isinstance(event, CellEnded):
            order.append(event.cell.name)
            begun.set()

    host = load_host(defaults=CORE)
    host.add(Opening(), "opening")
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False, lens=False)
    run_sweep(config, directory=tmp_path / "run", host=host, display=display)
    assert order[0] == "none/toy@all"
    assert "opened" in order


def test_no_tracker_works_while_a_cost_is_measured(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[tuple[float, float]] = []
    measured: list[tuple[float, float]] = []
    whole = measuring.measure_cost

    def noted(*given: Any, **options: Any) -> Any:
        began = time.monotonic()
        cost = whole(*given, **options)
        measured.append((began, time.monotonic()))
        return cost

    class Slow:
        @hookimpl
        def on_cell_start(self, event: CellStarted) -> None:
            self._work()

        @hookimpl
        def on_cell_end(self, event: CellEnded) -> None:
            self._work()

        def _work(self) -> None:
            began = time.monotonic()
            time.sleep(0.4)
            tracked.append((began, time.monotonic()))

    monkeypatch.setattr(measuring, "measure_cost", noted)
    host = load_host(defaults=CORE)
    host.add(Slow(), "slow")
    config = workshop.config(pruners=["first", "grid"], budgets=[4], lens=False)
    outcome = run_sweep(config, directory=tmp_path / "run", host=host)
    assert outcome.problems == ()
    assert (len(measured), len(tracked)) == (3, 9)  # questions and cost of three cells began, and they ended
    assert all(end <= start or stop <= began for began, end in tracked for start, stop in measured)


def test_reports_are_there_before_trackers_hear_of_the_end(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a stranger's; and what is in the folder is in MLflow."""
    found: list[str] = []

    class Author:
        @hookimpl
        def write_report(self, event: SweepEnded) -> None:
            assert threading.current_thread().name != "tokenprune-trackers"
            (event.directory / "report" / "mine.tex").write_text(event.status, encoding="utf-8")

        @hookimpl
        def on_sweep_end(self, event: SweepEnded) -> None:
            found.extend(path.name for path in (event.directory / "report").iterdir())

    host = load_host()
    host.add(Author(), "author")
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False)
    outcome = run_sweep(config, directory=directory, host=host)
    assert outcome.problems == ()
    assert {"mine.tex", "report.html", "leaderboard.json"} <= set(found)
    client = MlflowClient(tracking_uri=place_of(outcome).uri)
    (summary,) = client.search_runs([place_of(outcome).experiment_id], "tags.`tokenprune.kind` = 'summary'")
    assert {"mine.tex", "report.html"} <= {file.path for file in client.list_artifacts(summary.info.run_id)}


def test_the_report_needs_no_tracker(workshop: Workshop, tmp_path: Path) -> None:
    host = load_host(defaults=(*CORE, "tokenprune.report.listener"))
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False)
    outcome = run_sweep(config, directory=tmp_path / "run", host=host)
    assert outcome.problems == ()
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    assert not (tmp_path / "run" / "mlflow.db").exists()


def test_an_event_reads_one_cell_only(
    finished: FinishedSweep, tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = finished.copy(tmp_path / "demo")
    (directory / "mlflow.db").write_bytes(migrated_store.read_bytes())
    store = SweepStore(directory)
    cell = next(cell for cell in store.plan() if store.state(cell.id) == "done")
    event = CellEnded(
        cell,
        store.result(cell.id) or {},
        directory=directory,
        sweep_id=store.header().sweep_id,
        done=1,
        total=15,
    )
    open_store(directory).announce()

    def never(*arguments: Any) -> Any:
        raise AssertionError("the whole sweep was read for one event")

    for name in ("plan", "planned_rows", "header", "result", "error"):
        monkeypatch.setattr(SweepStore, name, never)
    mlflow_tracker.on_cell_end(event)
    client = MlflowClient(tracking_uri=f"sqlite:///{directory}/mlflow.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert run.data.tags["tokenprune.cell_id"] == cell.id
    assert run.data.metrics["quality/accuracy"] == event.result["quality"]["accuracy"]


@pytest.mark.thorough
def test_a_store_that_fails_once_gets_the_rest_at_the_end(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = RunWriter.log_cell, 0

    def fail_once(self: RunWriter, entry: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("the server is away")
        whole(self, entry)

    monkeypatch.setattr(RunWriter, "log_cell", fail_once)
    config = workshop.config(pruners=["first", "grid"], budgets=[4], efficiency=False)
    outcome = run_sweep(config, directory=directory, host=workshop.host)
    assert calls == 1  # it was left alone after that
    (problem,) = outcome.problems
    assert "ConnectionError: the server is away" in problem
    client = MlflowClient(tracking_uri=place_of(outcome).uri)
    runs = client.search_runs([place_of(outcome).experiment_id], "tags.`tokenprune.kind` = 'cell'")
    planned = [cell.id for cell in SweepStore(directory).plan()]
    assert sorted(run.data.tags["tokenprune.cell_id"] for run in runs) == sorted(planned)


@pytest.mark.thorough
def test_a_second_run_of_a_cell_is_deleted(workshop: Workshop, directory: Path) -> None:
    """A server that died after it took a request is asked again, and then has the run twice."""
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False)
    outcome = run_sweep(config, directory=directory, host=workshop.host)
    store = open_store(directory)
    entry = store._data.cells[0]
    store._runs.create_cell(entry)
    client = MlflowClient(tracking_uri=place_of(outcome).uri)
    query = "tags.`tokenprune.kind` = 'cell'"
    assert len(client.search_runs([place_of(outcome).experiment_id], query)) == 3
    assert open_store(directory).reconcile() == []
    runs = client.search_runs([place_of(outcome).experiment_id], query)
    assert sorted(run.data.params["pruner"] for run in runs) == ["first", "none"]
