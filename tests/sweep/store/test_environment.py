"""Every result says what it was run with; a sweep that goes on with other versions says so, and so does its report."""

from __future__ import annotations

import json
import platform
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune
from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep, Workshop
from tests.sweep.versions import upgrade
from tokenprune.cells.events import CellStarted
from tokenprune.evaluation.environment import PACKAGES, Installed, facts_of, version_of
from tokenprune.report import html_page, leaderboard, markdown_report
from tokenprune.sweep import SweepOutcome, SweepStore

Run = Callable[..., SweepOutcome]
QUICK = {"repeats": 1, "max_repeats": 1, "warmup": 0, "new_tokens": 1}
SMALL: dict[str, Any] = {"pruners": ["first"], "budgets": [4], "efficiency": False, "lens": False, "overlays": 0}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("COLUMNS", "300")
    return Commands(capsys)


def results(directory: Path) -> dict[str, dict[str, Any]]:
    store = SweepStore(directory)
    return {cell.name: store.settled(cell.id) or store.error(cell.id) or {} for cell in store.plan()}


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change every result of a sweep."""
    for path in directory.glob("cells/*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        change(result)
        path.write_text(json.dumps(result), encoding="utf-8")


def forget(result: dict[str, Any]) -> None:
    """What a version of tokenprune without this block wrote."""
    result.pop("environment")
    (result["cost"] or {}).pop("environment", None)


# --- the block --------------------------------------------------------------------------------------------------------


def test_every_result_and_error_says_what_it_was_run_with(finished: FinishedSweep) -> None:
    found = results(finished.directory)
    assert len(found) == 15
    for name, facts in found.items():
        block = facts["environment"]
        assert block["python"] == platform.python_version()
        assert set(block["packages"]) == set(PACKAGES)
        assert block["packages"]["torch"] == version_of("torch") != ""
        assert block["packages"]["tokenprune"].startswith(f"{tokenprune.__version__} (")
        assert (block["device"], block["threads"]) == ("cpu", torch.get_num_threads())
        assert (block["attention"], block["dtype"]) == ("sdpa", "float32")
        plugins = {"tokenprune-toy"} if facts["cell"]["distribution"] == "tokenprune-toy" else set()
        assert set(block["plugins"]) == plugins, name
        assert all(version.startswith("1.0 (") for version in block["plugins"].values())
        if "quality" in facts:
            assert facts["cost"]["environment"] == block
    assert not (finished.directory / "env.json").exists()


def test_the_project_on_the_index_that_has_our_name_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "tokenprune-9.9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune\nVersion: 9.9\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("tokenprune") == tokenprune.__version__
    assert Installed()("tokenprune").startswith(f"{tokenprune.__version__} (")
    assert version_of("no-such-distribution") == ""


def test_two_states_of_a_checkout_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have one version."""
    information = tmp_path / "my_pruner-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-pruner\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text("[tokenprune]\nmy = my_pruner.plugin\n", encoding="utf-8")
    package = tmp_path / "my_pruner"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text("ANSWER = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = Installed()("my-pruner")
    assert before.startswith("1.0 (")
    assert Installed()("my-pruner") == before
    (package / "plugin.py").write_text("ANSWER = 2\n", encoding="utf-8")
    assert Installed()("my-pruner") != before
    assert "(" not in Installed()("numpy")


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_sweep_that_continues_with_other_versions_says_so(
    sweep: Run, monkeypatch: pytest.MonkeyPatch, run: Commands
) -> None:
    """Nothing is lost by an upgrade, nothing old is labelled with the new versions, and both are told."""
    first = sweep(**SMALL)
    old, directory = version_of("torch"), first.directory
    before = results(directory)
    upgrade(monkeypatch, torch="9.9")
    events: list[Any] = []
    second = sweep(display=events.append, **{**SMALL, "pruners": ["first", "grid"]})
    assert (second.done, second.skipped) == (3, 2)
    said = f"2 cells were run with torch {old}, here it is 9.9: kept as they are; `--rerun` takes such cells up again"
    assert second.changes == (said,)
    assert events[0].changes == second.changes
    after = results(directory)
    assert {name: after[name] for name in before} == before
    assert after["grid/toy@4"]["environment"]["packages"]["torch"] == "9.9"

    mixed = f"A (torch {old}): none, first; B (torch 9.9): grid"
    note = f"answered in different environments, so differences between these rows may come from there: {mixed}"
    for text in (markdown_report(directory), html_page(directory), run("report", str(directory)).out):
        assert note in text
        assert "What the cells were run with" in text
    board = leaderboard(directory)
    assert [(each.name, each.differs, len(each.answered)) for each in board.environments] == [
        ("A", {"torch": old}, 2),
        ("B", {"torch": "9.9"}, 1),
    ]
    assert json.loads(json.dumps(board.to_json()))["environments"][1]["differs"] == {"torch": "9.9"}


def test_a_plan_says_what_a_rerun_would_take_up(
    sweep: Run, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, run: Commands, tmp_path: Path
) -> None:
    directory = sweep(**SMALL).directory
    upgrade(monkeypatch, torch="9.9", numpy="8.8")
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(workshop.data(**SMALL)), encoding="utf-8")
    words = ("sweep", str(path), "--out", str(directory), "--dry-run")
    old = (
        f"2 cells were run with torch {version_of('torch')} and numpy {version_of('numpy')}, here they are 9.9 and 8.8"
    )
    ran = run(*words)
    assert f"{old}: kept as they are; `--rerun`" in ran.err
    assert "2 cells, 0 to run" in ran.err
    ran = run(*words, "--rerun")
    assert f"{old}: run again" in ran.err
    assert "2 cells, 2 to run" in ran.err


def test_a_rerun_takes_up_what_differs_and_what_was_compared_with_it(
    workshop: Workshop, sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenprune.sweep import run_sweep

    directory = sweep(**{**SMALL, "pruners": ["none"]}).directory
    upgrade(monkeypatch, torch="9.9")
    assert sweep(**SMALL).done == 2  # the pruner's cell is of 9.9, and compared with an older one
    events: list[Any] = []

    def again() -> SweepOutcome:
        config = workshop.config(**SMALL)
        return run_sweep(
            config, directory=directory, host=workshop.host, display=events.append, rerun=True, track=False
        )

    outcome = again()
    assert outcome.changes == (f"1 cell was run with torch {version_of('torch')}, here it is 9.9: run again",)
    assert [event.cell.pruner for event in events if isinstance(event, CellStarted)] == ["none", "first"]
    assert {each["environment"]["packages"]["torch"] for each in results(directory).values()} == {"9.9"}
    assert again().skipped == 2


@pytest.mark.thorough
def test_a_cost_has_an_environment_of_its_own(sweep: Run, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers stay where a cost is measured again, with other versions: each says its own."""
    from tokenprune.sweep import run_sweep

    changes = {**SMALL, "efficiency": QUICK}
    directory = sweep(**changes).directory
    old = version_of("torch")
    upgrade(monkeypatch, torch="9.9")
    assert sweep(**{**changes, "efficiency": {**QUICK, "new_tokens": 2}}).done == 2
    for result in results(directory).values():
        assert result["environment"]["packages"]["torch"] == old
        assert result["cost"]["environment"]["packages"]["torch"] == "9.9"
    (row, *_) = leaderboard(directory).tables[0].rows
    assert row.cost is not None
    assert "torch 9.9" in row.cost.where
    monkeypatch.undo()  # the answers are of what is here now, the costs of another version
    config = workshop.config(**{**changes, "efficiency": {**QUICK, "new_tokens": 2}})
    events: list[Any] = []
    outcome = run_sweep(config, directory=directory, host=workshop.host, display=events.append, rerun=True, track=False)
    assert outcome.changes == (f"2 cells were measured with torch 9.9, here it is {old}: measured again",)
    assert [event.phase for event in events if isinstance(event, CellStarted)] == ["cost", "cost"]


def test_costs_of_different_environments_are_not_compared_in_silence(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "demo")

    def change(result: dict[str, Any]) -> None:
        if result["cell"]["pruner"] == "grid":
            result["cost"]["environment"]["packages"]["torch"] = "9.9"

    edit(copy, change)
    text = markdown_report(copy)
    now = version_of("torch")
    rows = f"A (torch {now}): none, random, downsample, first; B (torch 9.9): grid"
    assert f"measured in different environments, so times and ratios are not to be compared across them: {rows}" in text
    assert "answered in different environments" not in text
    assert "measured in several places" in text  # the front of accuracy over time


def test_seeds_that_were_measured_with_different_versions_share_no_median(
    finished: FinishedSweep, tmp_path: Path
) -> None:
    copy = finished.copy(tmp_path / "demo")

    def change(result: dict[str, Any]) -> None:
        if result["cell"]["pruner"] == "random" and result["cell"]["seed"] == 1:
            result["cost"]["environment"]["packages"]["torch"] = "9.9"

    edit(copy, change)
    (row, *_) = [row for row in leaderboard(copy).tables[0].rows if row.label == "random"]
    assert row.cost is not None
    (elsewhere,) = row.cost.elsewhere
    assert "torch 9.9" in elsewhere
    assert "torch 9.9" not in row.cost.where


# --- directories of older versions ------------------------------------------------------------------------------------


def test_a_directory_without_the_block_is_read_and_called_unknown(sweep: Run, run: Commands, tmp_path: Path) -> None:
    directory = sweep(**SMALL).directory
    edit(directory, forget)
    (directory / "env.json").write_text('{"packages": {"torch": "9.9"}}', encoding="utf-8")
    text = markdown_report(directory)
    assert "What the cells were run with is not recorded." in text
    assert "9.9" not in text
    rows = run("runs", "export", str(directory), "--json").json()["rows"]
    assert not any(name.startswith("env.") for row in rows for name in row)
    again = sweep(**{**SMALL, "pruners": ["first", "grid"]})
    assert again.skipped == 2
    assert again.changes == (
        "2 cells were run with versions that they do not say (an older tokenprune wrote them): kept as they are; "
        "`--rerun` takes such cells up again",
    )
    assert "? (not recorded): none, first; A (" in markdown_report(directory)


def test_what_is_in_the_block_is_exported(finished: FinishedSweep, run: Commands) -> None:
    rows = run("runs", "export", str(finished.directory), "--json").json()["rows"]
    assert {row["env.torch"] for row in rows} == {version_of("torch")}
    assert {row["env.device"] for row in rows} == {"cpu"}


def test_a_damaged_block_is_no_reason_to_fail() -> None:
    for block in (None, 7, "x", [], {}):
        assert facts_of(block) == {}
    assert facts_of({"packages": {"torch": "2", "numpy": ""}, "device_name": "", "cpus": 2}) == {
        "torch": "2",
        "cpus": "2",
    }


def test_a_recorded_leaderboard_says_what_its_results_were_run_with(finished: FinishedSweep, tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[3] / "docs" / "tables.py"
    recording = runpy.run_path(str(path))["recording"]
    copy = finished.copy(tmp_path / "demo")
    edit(copy, lambda result: result["environment"]["packages"].update(torch="9.9"))
    edit(copy, lambda result: result["cost"]["environment"]["packages"].update(torch="9.9"))
    assert "torch 9.9, " in recording(copy).splitlines()[0]
    edit(copy, lambda result: result["cell"]["pruner"] == "grid" and forget(result))
    with pytest.raises(SystemExit, match="2 different environments"):
        recording(copy)
