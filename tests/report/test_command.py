"""`tokenprune report` on a finished sweep: what a terminal of 80 columns shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep


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
