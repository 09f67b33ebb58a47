from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.sweep.fixtures import FinishedSweep
from tokenprune.errors import ConfigError
from tokenprune.report import leaderboard, markdown_report, markdown_table, pair_tables, write_report
from tokenprune.report.data.rows import BudgetTable
from tokenprune.report.render.plots import AXES, BUDGET, REFERENCE_COLOUR, draw, lines_of, sweep_colours
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.result_store import write_jsonl
from tokenprune.sweep.store.sweep_data import read_sweep


@pytest.fixture(scope="module")
def tables(finished: FinishedSweep) -> tuple[BudgetTable, ...]:
    return leaderboard(finished.directory).tables


def scores(finished: FinishedSweep, name: str) -> np.ndarray:
    store = SweepStore(finished.directory)
    cell = next(cell for cell in store.plan() if cell.name == name)
    return np.array([row["score"] for row in store.samples(cell.id)])


def test_one_table_per_budget_with_every_pruner(tables: tuple[BudgetTable, ...]) -> None:
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


def test_rows_are_ranked_by_accuracy(tables: tuple[BudgetTable, ...]) -> None:
    for table in tables:
        ranked = [row for row in table.rows if row.rank is not None]
        means = [row.accuracy.mean for row in ranked if row.accuracy]
        assert means == sorted(means, reverse=True)
        assert [row.rank for row in ranked] == [1 + sum(other > mean for other in means) for mean in means]
        assert {row.label for row in table.rows if row.rank is None} == {"none", "refusing"}


def test_equal_accuracies_share_a_rank_whatever_their_last_bits(finished: FinishedSweep, tmp_path: Path) -> None:
    """A mean of fractions is not quite the half that it should be."""
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    answers = {"first": [1 / 3, 0.7, 2 / 3, 0.3] * 2, "grid": [0.5] * 8, "downsample": [0.0] * 8}
    assert np.mean(answers["first"]) != 0.5
    for cell in store.plan():
        if cell.label in answers and cell.budget_label == "4":
            rows = [
                {**row, "score": score} for row, score in zip(store.samples(cell.id), answers[cell.label], strict=True)
            ]
            write_jsonl(copy / "cells" / cell.id / "samples.jsonl", rows)
    ranks = {row.label: row.rank for row in leaderboard(copy).tables[1].rows}
    assert ranks["first"] == ranks["grid"]


def test_of_two_variants_of_a_baseline_the_table_names_the_one_that_counts(
    finished: FinishedSweep, tmp_path: Path
) -> None:
    copy = finished.copy(tmp_path / "copy")
    plan = [json.loads(line) for line in (copy / "plan.jsonl").read_text().splitlines()]
    for cell in plan:
        cell["label"] = cell["label"] + ("[seed=1]" if cell["pruner"] == "random" and cell["seed"] else "")
    write_jsonl(copy / "plan.jsonl", plan)
    note = "vs random: compared with `random`, the first of 2 variants that ran"
    assert leaderboard(copy).tables[0].baselines == (note,)
    assert note in markdown_report(copy)
    assert leaderboard(finished.directory).tables[0].baselines == ()


def test_samples_that_a_baseline_failed_are_left_out_of_the_comparison(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    (cell,) = [cell for cell in store.plan() if cell.name == "downsample/toy@4"]
    rows = store.samples(cell.id)
    for row in rows[:3]:
        row |= {"score": 0.0, "prediction": "", "error": "ValueError: bad picture"}
    write_jsonl(copy / "cells" / cell.id / "samples.jsonl", rows)
    table = leaderboard(copy).tables[1]
    found = {row.label: row for row in table.rows}
    difference = (scores(finished, "first/toy@4") - scores(finished, "downsample/toy@4"))[3:].mean()
    assert found["first"].against_downsample is not None
    assert found["first"].against_downsample.questions == 5
    assert found["first"].against_downsample.difference.mean == pytest.approx(difference)
    accuracy = found["downsample"].accuracy
    assert accuracy is not None
    assert accuracy.mean == pytest.approx(scores(finished, "downsample/toy@4")[3:].sum() / 8)  # wrong in its own row
    (note,) = table.baselines
    assert note.startswith("vs downsample: without 3 questions on which `downsample` raised an error")


def test_seeds_are_averaged(finished: FinishedSweep, tables: tuple[BudgetTable, ...]) -> None:
    (row,) = [row for row in tables[1].rows if row.label == "random"]
    both = np.stack([scores(finished, "random/toy@4"), scores(finished, "random/toy@4 seed 1")])
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(both.mean())
    assert row.seeds == 2
    assert row.against_random is None


def test_differences_are_paired(finished: FinishedSweep, tables: tuple[BudgetTable, ...]) -> None:
    (row,) = [row for row in tables[1].rows if row.label == "first"]
    expected = (scores(finished, "first/toy@4") - scores(finished, "none/toy@all")).mean()
    assert row.against_none is not None
    assert row.against_none.mean == pytest.approx(expected)
    assert row.against_none.bounds is None  # the toy task has four pictures
    assert row.against_random is not None
    assert 0 < row.against_random.p <= row.against_random.p_adjusted <= 1
    assert row.against_downsample is not None
    down = (scores(finished, "first/toy@4") - scores(finished, "downsample/toy@4")).mean()
    assert row.against_downsample.difference.mean == pytest.approx(down)
    assert row.retention is not None
    unpruned = scores(finished, "none/toy@all").mean()
    assert row.retention.mean == pytest.approx(scores(finished, "first/toy@4").mean() / unpruned)


def test_a_failed_cell_counts_as_wrong_answers_and_a_refused_one_is_not_ranked(tables: tuple[BudgetTable, ...]) -> None:
    rows = {row.label: row for row in tables[0].rows}
    failed, refused = rows["exploding"], rows["refusing"]
    assert (failed.outcome, failed.reason, failed.seeds, failed.failed) == ("failed", "boom", 0, 1)
    assert failed.accuracy is not None
    assert (failed.accuracy.mean, failed.questions, failed.agreement) == (0.0, 8, 0.0)
    assert failed.retention is not None
    assert failed.retention.mean == 0.0
    assert failed.prefill_ms is None
    assert (refused.outcome, refused.reason) == ("refused", "no budget pleases me")
    assert (refused.accuracy, refused.rank) == (None, None)
    assert tables[0].rows[-2:] == (failed, refused)


def test_a_failed_seed_stays_in_the_denominator(finished: FinishedSweep, tmp_path: Path) -> None:
    before = {row.label: row for row in leaderboard(finished.directory).tables[1].rows}["random"]
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    (cell,) = [cell for cell in store.plan() if cell.name == "random/toy@4 seed 1"]
    first = scores(finished, "random/toy@4").mean()
    (copy / "cells" / cell.id / "result.json").unlink()
    store.write_error(cell, {"outcome": "failed", "type": "OSError", "message": "gone"})
    table = leaderboard(copy).tables[1]
    row = {row.label: row for row in table.rows}["random"]
    assert (row.outcome, row.seeds, row.failed, row.questions) == ("failed", 1, 1, 8)
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(first / 2)
    assert row.agreement is not None
    assert before.agreement is not None
    assert row.agreement <= 0.5
    assert table.stability is not None
    assert table.stability.seeded[0].accuracy[0] == 0.0
    # as the baseline of others it is not weakened by its failure
    other = {row.label: row for row in table.rows}["first"]
    assert other.against_random is not None
    assert other.against_random.difference.mean == pytest.approx(scores(finished, "first/toy@4").mean() - first)


def test_a_failed_sample_stays_in_the_denominator(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    (cell,) = [cell for cell in store.plan() if cell.name == "first/toy@4"]
    samples = store.samples(cell.id)
    right = next(place for place, row in enumerate(samples) if row["score"] == 1.0)
    samples[right] |= {"score": 0.0, "prediction": "", "error": "ValueError: bad picture"}
    write_jsonl(copy / "cells" / cell.id / "samples.jsonl", samples)
    row = {row.label: row for row in leaderboard(copy).tables[1].rows}["first"]
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(scores(finished, "first/toy@4").mean() - 1 / 8)
    assert row.questions == 8


def test_missing_samples_are_an_error_and_not_a_smaller_denominator(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    (cell,) = [cell for cell in store.plan() if cell.name == "first/toy@4"]
    write_jsonl(copy / "cells" / cell.id / "samples.jsonl", store.samples(cell.id)[:5])
    with pytest.raises(ConfigError, match="holds 5 of 8 samples"):
        leaderboard(copy)


def test_the_hard_subset_is_what_down_sampling_gets_wrong(
    finished: FinishedSweep, tables: tuple[BudgetTable, ...]
) -> None:
    for table, budget in zip(tables, ("50%", "4"), strict=True):
        unpruned, down = scores(finished, "none/toy@all"), scores(finished, f"downsample/toy@{budget}")
        mask = (unpruned == 1.0) & (down == 0.0)
        assert table.hard.questions == mask.sum()
        for row in table.rows[1:]:
            if row.pruner in ("first", "grid") and mask.any():
                assert row.hard is not None
                assert row.hard.mean == pytest.approx(scores(finished, f"{row.label}/toy@{budget}")[mask].mean())
            if not mask.any():
                assert row.hard is None
                assert table.hard.reason


def test_families_add_up_and_have_intervals(tables: tuple[BudgetTable, ...]) -> None:
    for row in tables[0].rows:
        if row.families is None or row.accuracy is None:
            continue
        questions = sum(found.questions for found in row.families.values())
        right = sum(found.questions * found.accuracy.mean for found in row.families.values())
        assert (questions, right / questions) == (8, pytest.approx(row.accuracy.mean))
        if row.label not in ("none", "random", "exploding"):  # what never ran is not compared
            assert all(found.against_random is not None for found in row.families.values())


def test_every_pair_of_a_table(finished: FinishedSweep) -> None:
    first, second = pair_tables(finished.directory)
    assert (first.budget, second.budget) == ("50%", "4")
    scored = ["none", "random", "grid", "downsample", "first"]  # `exploding` never ran
    assert len(first.pairs) == len(scored) * (len(scored) - 1) // 2
    (pair,) = [pair for pair in second.pairs if (pair.first, pair.second) == ("grid", "first")]
    expected = (scores(finished, "grid/toy@4") - scores(finished, "first/toy@4")).mean()
    assert pair.difference.mean == pytest.approx(expected)


def test_the_summary_of_all_budgets(finished: FinishedSweep, tables: tuple[BudgetTable, ...]) -> None:
    (summary,) = leaderboard(finished.directory).summaries
    assert set(summary.needed) == {"random", "grid", "downsample", "first", "exploding"}
    assert [found.bound for found in summary.needed["exploding"]] == ["more than"] * 3  # failed at both budgets
    assert {front.cost for front in summary.fronts} == {"over_unpruned", "layer_average"}
    for front in summary.fronts:
        points = {(point.label, point.budget): point for point in front.points}
        assert "exploding" not in front.hypervolumes  # it has no cost
        assert max(front.hypervolumes.values()) <= front.hypervolume <= 1.0
        best = max(row.accuracy.mean for table in tables for row in table.rows if row.accuracy)
        assert max(point.accuracy for point in points.values()) == pytest.approx(best)


def test_a_front_over_time_needs_measured_time(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for path in copy.glob("cells/*/result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "cost": None}), encoding="utf-8")
    board = leaderboard(copy)
    (summary,) = board.summaries
    assert [front.cost for front in summary.fronts] == ["layer_average"]
    assert summary.unmeasured == {"over_unpruned": "not measured"}
    assert "no front over prefill time: not measured" in markdown_report(board)


def test_markdown(finished: FinishedSweep) -> None:
    text = markdown_table(finished.directory)
    assert "50% of the visual tokens kept, 8 questions" in text
    assert "4 visual tokens kept, 8 questions" in text
    assert "- exploding: failed: boom" in text
    for table in leaderboard(finished.directory).tables:
        if table.hard.questions == 1:
            assert "- hard: 1 question\n" in text
    assert "- refusing: refused: no budget pleases me" in text
    more = markdown_report(finished.directory)
    assert more.startswith(text.rstrip())
    assert "tokens needed per retention" in more
    assert "Pareto front of accuracy and prefill time" in more
    assert "over 2 seeds" in more
    assert "families at 4 tokens" in more
    widths = [{line.count("|") for line in block.splitlines() if line.startswith("|")} for block in more.split("**\n")]
    assert all(len(found) == 1 for found in widths if found)


def test_json(finished: FinishedSweep) -> None:
    data = json.loads(json.dumps(leaderboard(finished.directory).to_json(), allow_nan=False))
    assert data["schema"] == 4
    assert data["tables"][0]["rows"][0]["label"] == "none"


def test_an_unfinished_sweep_has_a_table_too(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for cell in SweepStore(copy).plan():
        if cell.pruner in ("grid", "none"):
            (copy / "cells" / cell.id / "result.json").unlink()
    rows = {row.label: row for row in leaderboard(copy).tables[0].rows}
    assert rows["grid"].outcome == "pending"
    assert rows["first"].accuracy is not None
    assert rows["first"].against_none is None
    assert rows["exploding"].accuracy is None  # nobody knows the questions


def test_not_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a sweep directory"):
        leaderboard(tmp_path)


def test_lines_of_a_plot(finished: FinishedSweep, tables: tuple[BudgetTable, ...]) -> None:
    lines = {line.label: line.points for line in lines_of(tables, BUDGET)}
    assert [point.x for point in lines["first"]] == [4.0, 8.0]
    assert [point.budget for point in lines["first"]] == ["4", "50%"]
    assert len(lines["none"]) == 1
    assert "exploding" not in lines
    colours = sweep_colours(read_sweep(finished.directory))
    assert colours["none"] == REFERENCE_COLOUR
    assert len(set(colours.values())) == len(colours)
    plot = draw(tables, BUDGET, colours)
    assert plot is not None
    assert plot.png().startswith(b"\x89PNG")


def test_report_folder(finished: FinishedSweep, tmp_path: Path) -> None:
    page = write_report(finished.copy(tmp_path / "copy"))
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "leaderboard.md",
        "leaderboard.json",
        "pairs.json",
        *(f"{axis.name}.png" for axis in AXES),
    }
