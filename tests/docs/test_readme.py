"""README: its Python runs as written; the file and its first table are short."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n", 1)[0] for block in BLOCKS])
def test_every_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "docs" / "examples" / "circle.png", tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    runpy.run_path("block.py", run_name="block")


def test_the_example_prints_the_answer_and_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_every_python_block_runs(BLOCKS[0], tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "green" in printed
    assert "64" in printed
    assert "256" in printed


def test_the_first_table_has_at_most_ten_rows_and_seven_columns() -> None:
    table = re.search(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert table is not None
    lines = table[0].strip().splitlines()
    assert len(lines) - 2 <= 10
    assert lines[0].count("|") - 1 <= 7


def test_it_is_short() -> None:
    assert len(README.encode()) < 10_000
