"""A column is one row of a table: added there, it stands everywhere; and nothing else spells it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tokenprune
from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep
from tokenprune.report import html_page, markdown_report
from tokenprune.report.render import columns
from tokenprune.report.render.columns import COLUMNS, COST, PAGE, Column


def test_a_new_column_is_added_in_one_place(
    finished: FinishedSweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Column("letters", "letters of it", lambda row: f"{len(row.label)}!", "how long the name is", 2, PAGE | COST)
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, new))
    markdown = markdown_report(finished.directory)
    tables = [block for block in markdown.split("\n\n") if "| letters of it |" in block]
    assert len(tables) == 4  # leaderboard and cost at two budgets
    assert all("| 4! |" in table for table in tables)
    assert "letters of it: how long the name is." in markdown
    html = html_page(finished.directory)
    first, whole = re.findall(r"<table class=board>.*?</table>", html, re.DOTALL)[:2]
    for table in (first, whole):
        assert "<th>letters of it</th>" in table
        assert "<td>4!</td>" in table
    monkeypatch.setenv("COLUMNS", "80")
    shown = Commands(capsys)("report", str(finished.directory))
    assert shown.code == 0, shown.err
    assert shown.out.count("letters of it") >= 4
    assert re.search(r"\b4!", shown.out)
    assert "letters of it: how long the name is" in " ".join(shown.out.split())


def test_keys_and_headings_are_unique() -> None:
    for names in ([column.key for column in COLUMNS], [column.heading for column in COLUMNS]):
        assert len(names) == len(set(names))


def test_nothing_else_spells_a_heading() -> None:
    root = Path(tokenprune.__file__).parent
    headings = [column.heading for column in COLUMNS if " " in column.heading]
    readers = [*(root / "report").rglob("*"), *(root / "tracking").rglob("*"), root / "cli" / "leaderboard.py"]
    sources = [path for path in readers if path.suffix in (".py", ".j2", ".js") and path.name != "columns.py"]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for heading in headings:
            assert f'"{heading}"' not in text, (path.name, heading)
            assert f"`{heading}`" not in text, (path.name, heading)
