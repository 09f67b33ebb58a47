from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.sweep.fixtures import FinishedSweep
from tokenprune.errors import ConfigError
from tokenprune.report import leaderboard, markdown_table, write_report
from tokenprune.report.plots import BUDGET, FIGURES, lines_of, png
from tokenprune.report.reading import REFERENCE_COLOUR, read_sweep
from tokenprune.report.tables import Table
from tokenprune.sweep import Ledger


@pytest.fixture(scope="module")
def tables(finished: FinishedSweep) -> tuple[Table, ...]:
    return leaderboard(finished.directory).tables


def scores(finished: FinishedSweep, name: str) -> np.ndarray:
    ledger = Ledger(finished.directory)
    cell = next(cell for cell in ledger.plan() if cell.name == name)
    return np.array([row["score"] for row in ledger.samples(cell.id)])


def test_one_table_per_budget_with_every_pruner(tables: tuple[Table, ...]) -> None:
    assert [(table.task, table.budget) for table in tables] == [("toy (size=8)", "50%"), ("toy (size=8)", "4")]
    for table in tables:
        assert table.rows[0].label == "none"
        assert {row.label for row in table.rows} == {
            "none",
            "random",
            "grid",
            "downsample",
            "first",
            "exploding",
            "refusing",
        }


def test_rows_are_ranked_by_accuracy(tables: tuple[Table, ...]) -> None:
    for table in tables:
        ranked = [row for row in table.rows if row.rank is not None]
        means = [row.accuracy.mean for row in ranked if row.accuracy]
        assert means == sorted(means, reverse=True)
        assert [row.rank for row in ranked] == [1 + sum(other > mean for other in means) for mean in means]
        assert {row.label for row in table.rows if row.rank is None} == {"none", "exploding", "refusing"}


def test_seeds_are_averaged(finished: FinishedSweep, tables: tuple[Table, ...]) -> None:
    (row,) = [row for row in tables[1].rows if row.label == "random"]
    both = np.stack([scores(finished, "random/toy@4"), scores(finished, "random/toy@4 seed 1")])
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(both.mean())
    assert row.seeds == 2
    assert row.against_random is None


def test_differences_are_paired(finished: FinishedSweep, tables: tuple[Table, ...]) -> None:
    (row,) = [row for row in tables[1].rows if row.label == "first"]
    expected = (scores(finished, "first/toy@4") - scores(finished, "none/toy@all")).mean()
    assert row.against_none is not None
    assert row.against_none.mean == pytest.approx(expected)
    assert row.against_none.low <= expected <= row.against_none.high
    assert row.q_random is not None
    assert 0 < row.q_random <= 1


def test_what_has_no_result_is_shown_and_not_ranked(tables: tuple[Table, ...]) -> None:
    rows = {row.label: row for row in tables[0].rows}
    assert (rows["exploding"].outcome, rows["exploding"].reason) == ("failed", "boom")
    assert (rows["refusing"].outcome, rows["refusing"].reason) == ("refused", "no budget pleases me")
    assert rows["exploding"].accuracy is None
    assert rows["exploding"].prefill_ms is None
    assert tables[0].rows[-2:] == (rows["exploding"], rows["refusing"])


def test_markdown(finished: FinishedSweep) -> None:
    text = markdown_table(finished.directory)
    assert "50% of the visual tokens kept, 8 questions" in text
    assert "4 visual tokens kept, 8 questions" in text
    assert "- `exploding` failed: boom" in text
    widths = [{line.count("|") for line in block.splitlines() if line.startswith("|")} for block in text.split("**\n")]
    assert all(len(found) == 1 for found in widths if found)


def test_json(finished: FinishedSweep) -> None:
    data = json.loads(json.dumps(leaderboard(finished.directory).to_json(), allow_nan=False))
    assert data["schema"] == 1
    assert data["tables"][0]["rows"][0]["label"] == "none"


def test_an_unfinished_sweep_has_a_table_too(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for cell in Ledger(copy).plan():
        if cell.pruner in ("grid", "none"):
            (copy / "cells" / cell.id / "result.json").unlink()
    rows = {row.label: row for row in leaderboard(copy).tables[0].rows}
    assert rows["grid"].outcome == "pending"
    assert rows["first"].accuracy is not None
    assert rows["first"].against_none is None


def test_not_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a sweep directory"):
        leaderboard(tmp_path)


def test_lines_of_a_figure(finished: FinishedSweep, tables: tuple[Table, ...]) -> None:
    lines = {line.label: line.points for line in lines_of(tables, BUDGET)}
    assert [point[0] for point in lines["first"]] == [4.0, 8.0]
    assert [point[4] for point in lines["first"]] == ["4", "50%"]
    assert len(lines["none"]) == 1
    assert "exploding" not in lines
    colours = read_sweep(finished.directory).colours()
    assert colours["none"] == REFERENCE_COLOUR
    assert len(set(colours.values())) == len(colours)
    assert png(tables, BUDGET, colours).startswith(b"\x89PNG")


def test_report_folder(finished: FinishedSweep, tmp_path: Path) -> None:
    page = write_report(finished.copy(tmp_path / "copy"))
    html = page.read_text(encoding="utf-8")
    assert {path.name for path in page.parent.iterdir()} == {
        "index.html",
        "leaderboard.md",
        "leaderboard.json",
        *(f"{name}.png" for name in FIGURES),
    }
    assert 'src="http' not in html  # readable without a network
    assert html.count("Plotly.newPlot(") == len(FIGURES)
    assert html.count("data:image/png;base64,") == 6  # none has its budget `all`; five at the last one
