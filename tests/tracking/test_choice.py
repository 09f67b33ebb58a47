"""Trackers are chosen by name, or switched off; what they missed they get later."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep, Workshop
from tokenprune import hookimpl
from tokenprune.cells.events import CellEnded, SweepEnded, SweepStarted
from tokenprune.cli import app as application
from tokenprune.errors import ConfigError, UnknownNameError
from tokenprune.plugins import load_host
from tokenprune.sweep import SweepStore, plan_cells, run_sweep
from tokenprune.sweep.config.schema import parse_config
from tokenprune.sweep.config.yaml_source import Source
from tokenprune.sweep.store.tracker_notes import (
    TRACKING_FILE,
    Link,
    TrackerNote,
    leave_note,
    mark_behind,
    read_notes,
    remove_note,
)
from tokenprune.tracking.mlflow_tracker import replay
from tokenprune.tracking.server import find_dashboard

SMALL = {"pruners": ["first"], "budgets": [4], "efficiency": False, "lens": False, "overlays": 0}


class Notes:
    """Notes what it hears.

    Not shown in lists.
    """

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def on_sweep_start(self, event: SweepStarted) -> None:
        self.heard.append("start")

    @hookimpl
    def on_cell_end(self, event: CellEnded) -> None:
        self.heard.append(event.cell.label)

    @hookimpl
    def write_report(self, event: SweepEnded) -> None:
        self.heard.append("report")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands in this process."""
    monkeypatch.setenv("COLUMNS", "80")
    return Commands(capsys)


@pytest.fixture
def toy_sweep(workshop: Workshop, tmp_path: Path) -> Path:
    """A small sweep file."""
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({**workshop.data(**SMALL), "executor": "inline"}), encoding="utf-8")
    return path


def cell_runs(directory: Path) -> list[str]:
    """Ids of the cells in the directory's own store."""
    client = MlflowClient(tracking_uri=f"sqlite:///{directory}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name.startswith("tokenprune")]
    runs = client.search_runs([experiment.experiment_id], "tags.`tokenprune.kind` = 'cell'")
    return sorted(run.data.tags["tokenprune.cell_id"] for run in runs)


# --- names ----------------------------------------------------------------------------------------------------------


def test_every_plugin_that_hears_of_sweeps_can_be_chosen_and_all_are_the_default() -> None:
    host = load_host(())
    host.add(Notes(), "Notes", distribution="acme")
    assert host.trackers.names() == ("jsonl", "mlflow", "notes")
    assert (host.trackers.get("notes").summary, host.trackers.owner("notes")) == ("Notes what it hears", "acme")
    assert "tokenprune.report.listener" not in {spec.target for spec in host.trackers}  # the report is no tracker


def test_a_tracker_cannot_take_a_name_that_is_taken_or_stands_for_none() -> None:
    host = load_host(())
    second = Notes()
    for name in ("mlflow", "none"):
        report = host.add(second, name, distribution="acme")
        assert report.outcome == "partial"
        assert f"`{name}`" in report.reason
        second = Notes()
    assert host.emit("on_cell_end", None, ()) == []
    assert second.heard == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, None),
        (True, None),
        ("none", ()),
        (False, ()),
        ([], ()),
        (["none"], ()),
        ("jsonl", ("jsonl",)),
        (["mlflow", "jsonl", "mlflow"], ("mlflow", "jsonl")),
    ],
)
def test_the_choice_in_a_sweep_file(workshop: Workshop, written: object, read: object) -> None:
    config = workshop.config(**SMALL, trackers=written)
    assert config.trackers == read
    assert parse_config(Source("again", config.to_json()), workshop.host) == config
    plain = plan_cells(workshop.config(**SMALL), workshop.host)
    assert [cell.id for cell in plan_cells(config, workshop.host)] == [cell.id for cell in plain]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["mlflwo"], "trackers.0: unknown tracker `mlflwo`; did you mean `mlflow`?"),
        (["none", "mlflow"], "trackers: `none` means no tracker, so it stands alone"),
        (3, "trackers: input should be a valid tuple, got 3"),
    ],
)
def test_a_wrong_choice_is_told(workshop: Workshop, written: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        workshop.config(**SMALL, trackers=written)
    assert message in caught.value.message


def test_a_choice_that_this_process_lacks_makes_no_directory(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(**SMALL).model_copy(update={"trackers": ("wandb",)})
    with pytest.raises(UnknownNameError, match="unknown tracker `wandb`"):
        run_sweep(config, directory=tmp_path / "run", host=workshop.host)
    assert not (tmp_path / "run").exists()


# --- sweeps ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_without_trackers_mlflow_is_not_even_imported_and_later_it_gets_everything(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "mlflow.db").rename(directory.parent / "empty.db")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)  # an import of it fails, and would be among the problems
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        silent = run_sweep(workshop.config(**SMALL, trackers="none"), directory=directory, host=workshop.host)
    assert (silent.done, silent.problems, silent.tracking) == (2, (), {})
    left = {path.name for path in directory.iterdir()}
    assert "report" in left
    assert not {name for name in left if "mlflow" in name or name in (TRACKING_FILE, "events.jsonl")}
    shutil.move(directory.parent / "empty.db", directory / "mlflow.db")
    tracked = run_sweep(workshop.config(**SMALL), directory=directory, host=workshop.host)
    assert (tracked.skipped, tracked.problems, list(tracked.tracking)) == (2, (), ["mlflow"])
    assert cell_runs(directory) == sorted(cell.id for cell in SweepStore(directory).plan())


def test_a_strangers_tracker_is_chosen_by_its_name(workshop: Workshop, tmp_path: Path) -> None:
    host = load_host(
        defaults=(
            "tokenprune.baselines",
            "tokenprune.families",
            "tokenprune.checkpoints",
            "tokenprune.sweep.executors.executor",
        )
    )
    chosen, other = Notes(), Notes()
    host.add(chosen, "chosen")
    host.add(other, "other")
    config = workshop.config(**SMALL).model_copy(update={"trackers": ("chosen",)})
    assert run_sweep(config, directory=tmp_path / "run", host=host).problems == ()
    assert [what for what in chosen.heard if what != "report"] == ["start", "none", "first"]
    assert chosen.heard.count("report") == 1
    assert other.heard == ["report"]


@pytest.mark.thorough
def test_a_store_that_did_not_hear_of_cells_says_so_until_it_is_filled(
    run: Commands, workshop: Workshop, finished: FinishedSweep, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished.directory, tmp_path / "demo"))
    lost = next(cell for cell in SweepStore(copy).plan() if cell.label == "grid")
    (copy / "cells" / lost.id / "result.json").unlink()
    assert not find_dashboard(copy).behind
    silent = run_sweep(workshop.config(seeds=[0, 1], trackers=["jsonl"]), directory=copy, host=workshop.host)
    assert (silent.tracking, silent.problems) == ({}, ())
    assert read_notes(copy)["mlflow"].behind
    assert find_dashboard(copy).behind
    replay(copy)
    assert not find_dashboard(copy).behind
    assert lost.id in cell_runs(copy)
    nothing = run_sweep(workshop.config(seeds=[0, 1], trackers=[]), directory=copy, host=workshop.host)
    assert (nothing.skipped, nothing.tracking) == (15, {})
    assert not find_dashboard(copy).behind  # it ran no cell


# --- commands -------------------------------------------------------------------------------------------------------


def test_trackers_are_listed(run: Commands) -> None:
    assert [entry["name"] for entry in run("list", "trackers", "--json").json()["trackers"]][:2] == ["jsonl", "mlflow"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tracker", "mlfow"], "unknown tracker `mlfow`; did you mean `mlflow`?"),
        (["--tracker", "jsonl", "--tracker", "none"], "`none` means no tracker, so it stands alone"),
        (["--tracker", "jsonl", "--no-tracker"], "--tracker and --no-tracker exclude each other"),
    ],
)
@pytest.mark.parametrize("command", [["sweep", "--dry-run"], ["runs", "retry", "DIRECTORY"]])
def test_a_wrong_choice_on_the_command_line(
    run: Commands, finished: FinishedSweep, command: list[str], words: list[str], message: str
) -> None:
    given = [str(finished.directory) if word == "DIRECTORY" else word for word in command]
    ran = run(*given, *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.split())


def test_a_silent_command_names_the_report_and_keeps_its_choice(
    run: Commands, finished: FinishedSweep, tmp_path: Path
) -> None:
    copy = finished.copy(tmp_path / "demo")
    ran = run("runs", "retry", str(copy), "--tracker", "none")
    assert f"report: {copy}/report/report.html" in ran.err
    assert "dashboard" not in ran.err
    assert SweepStore(copy).header().config["trackers"] == []
    assert not (copy / "mlflow.db").exists()
    ran = run("ui", str(copy))
    assert ran.code == 2
    assert "`tokenprune runs replay" in ran.err


class Pages:
    """Shows sweeps on a page of its own.

    A second tracker that leaves a note beside MLflow's.
    """

    @hookimpl
    def on_sweep_end(self, event: SweepEnded) -> None:
        note = TrackerNote(
            "pages: open them in a browser", (Link("Sweep", "https://pages/1"), Link("All", "https://p"))
        )
        leave_note(event.directory, "pages", note)


def test_a_second_tracker_leaves_its_note_beside_the_first(
    run: Commands, toy_sweep: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = load_host()
    host.add(Pages(), "pages")
    monkeypatch.setattr(application, "load_host", lambda: host)
    ran = run("sweep", str(toy_sweep), "--out", str(directory))
    assert ran.code == 0, ran.err
    said = ran.err.splitlines()
    first, second = said.index(f"dashboard: tokenprune ui {directory}"), said.index("pages: open them in a browser")
    assert said[second + 1 : second + 3] == ["  Sweep  https://pages/1", "  All    https://p"]
    assert any("Trade-off" in line for line in said[first:])
    assert set(read_notes(directory)) == {"mlflow", "pages"}
    again = run("sweep", str(toy_sweep), "--out", str(directory), "--json").json()["sweep"]
    assert again["tracking"]["pages"]["links"][0] == {"label": "Sweep", "url": "https://pages/1"}
    only = run("sweep", str(toy_sweep), "--out", str(directory), "--tracker", "pages")
    assert "pages: open them in a browser" in only.err
    assert "dashboard" not in only.err
    alone = run("sweep", str(toy_sweep), "--out", str(directory), "--tracker", "jsonl")
    assert f"report: {directory}/report/report.html" in alone.err


def test_a_note_of_the_one_stays_if_the_other_goes(tmp_path: Path) -> None:
    leave_note(tmp_path, "one", TrackerNote("first"))
    leave_note(tmp_path, "other", TrackerNote("second", details={"own": [1]}))
    mark_behind(tmp_path, ["one"])
    remove_note(tmp_path, "one")
    assert read_notes(tmp_path) == {"other": TrackerNote("second", behind=True, details={"own": [1]})}
    remove_note(tmp_path, "other")
    assert list(tmp_path.iterdir()) == []
