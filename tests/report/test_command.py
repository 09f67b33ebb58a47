"""`tokenprune report` on a finished sweep: what a terminal of 80 columns shows."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.result_store import write_jsonl


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Commands(capsys)


def headers(text: str, column: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("pruner ", "#", " #")) and column in line]


def test_everything_is_shown_within_80_columns(run: Commands, finished: FinishedSweep) -> None:
    shown = run("report", str(finished.directory), "--families", "--pairs")
    assert shown.code == 0, shown.err
    lines = [line for line in shown.out.splitlines() if "toy (" not in line and "/model" not in line]
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert len(headers(shown.out, "vs random")) == 4  # two tables, and their families
    assert len(headers(shown.out, "family")) == 2
    assert len(headers(shown.out, " p ")) == 2
    assert len(headers(shown.out, "for 99 %")) == 1
    assert len(headers(shown.out, "prefill ms")) >= 1
    assert "Kendall's W - (only one pruner depends on the seed)" in shown.out
    assert "exploding: failed: boom" in shown.out
    assert "accuracy % on the hard subset" in " ".join(shown.out.split())


def test_a_note_is_shown_only_with_its_column(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for path in copy.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        result["cost"]["busy"] = {"busy": True, "before": {"cpu": 0.5}, "during": {}, "limit": 0.1}
        result["cost"]["precision"]["met"] = False
        path.write_text(json.dumps(result))
    shown = run("report", str(copy))
    blocks = shown.out.split("\n\n")
    assert any("\N{DAGGER}:" in block for block in blocks)
    for block in blocks:
        for mark in ("\N{DAGGER}", "?"):
            bearing = [line for line in block.splitlines()[1:] if mark in line and not line.startswith(f"{mark}: ")]
            assert (f"\n{mark}: " in block) == bool(bearing), block
        assert bool(re.search(r"\nhard: \d+ question", block)) == ("hard %" in block)


def test_families_keep_their_number_of_questions(run: Commands, finished: FinishedSweep) -> None:
    shown = run("report", str(finished.directory), "--families")
    assert all("questions" in line for line in headers(shown.out, "family"))


def test_the_essentials_are_shown_within_80_columns(run: Commands, finished: FinishedSweep) -> None:
    shown = run("report", str(finished.directory))
    for column in ("accuracy %", "vs random", "x none"):  # with their intervals
        assert len(headers(shown.out, column)) >= 2, column


def test_without_down_sampling_there_is_no_empty_table(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    plan = [line for line in (copy / "plan.jsonl").read_text().splitlines() if '"pruner": "downsample"' not in line]
    (copy / "plan.jsonl").write_text("\n".join(plan) + "\n")
    shown = run("report", str(copy))
    assert shown.code == 0, shown.err
    assert "hard subset" not in shown.out
    assert "hard: - (`downsample` has no result at this budget)" in " ".join(shown.out.split())


def test_an_unpruned_model_that_is_never_right_leaves_no_notes_without_columns(
    run: Commands, finished: FinishedSweep, tmp_path: Path
) -> None:
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    (cell,) = [cell for cell in store.plan() if cell.pruner == "none"]
    rows = [{**row, "score": 0.0} for row in store.samples(cell.id)]
    write_jsonl(copy / "cells" / cell.id / "samples.jsonl", rows)
    shown = run("report", str(copy))
    assert "for 99 %" not in shown.out
    assert "no retention: the unpruned model has no result, or answers nothing right" in " ".join(shown.out.split())
    assert "hard: - (the unpruned model answers nothing right)" in shown.out


def test_families_and_pairs_are_shown_when_asked_for(run: Commands, finished: FinishedSweep) -> None:
    shown = run("report", str(finished.directory))
    assert "families at" not in shown.out
    assert "pairs at" not in shown.out


def test_json_holds_the_pairs_when_asked_for(run: Commands, finished: FinishedSweep) -> None:
    plain = run("report", str(finished.directory), "--json").json()
    assert "pairs" not in plain
    assert len(plain["leaderboard"]["summaries"]) == 1
    paired = run("report", str(finished.directory), "--json", "--pairs").json()
    assert [len(table["pairs"]) for table in paired["pairs"]] == [10, 10]
    assert {"first", "second", "difference", "p", "p_adjusted"} <= set(paired["pairs"][0]["pairs"][0])


def test_markdown_with_pairs(run: Commands, finished: FinishedSweep) -> None:
    shown = run("report", str(finished.directory), "--markdown", "--pairs")
    assert "pairs at 50%**" in shown.out
    assert "| pruner | minus | difference | p | p alone |" in shown.out


def test_a_report_that_cannot_be_written_is_one_error(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    shutil.rmtree(copy / "report", ignore_errors=True)
    (copy / "report").mkdir()
    (copy / "report" / "leaderboard.md").mkdir()
    shown = run("report", str(copy), "--html")
    assert shown.code == 2
    assert shown.err.startswith("error: cannot write")
    assert "hint:" in shown.err
    assert "Traceback" not in shown.err


def test_two_formats_exclude_each_other(run: Commands, finished: FinishedSweep) -> None:
    shown = run("report", str(finished.directory), "--markdown", "--json")
    assert (shown.code, shown.out) == (2, "")
