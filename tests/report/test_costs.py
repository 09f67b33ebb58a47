"""Costs in a report: medians with quartiles, the floor beside them, and what is not to be believed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import FinishedSweep
from tokenprune.report import leaderboard, markdown_report
from tokenprune.report.data.costs import Quartiles, summarise_costs
from tokenprune.report.data.rows import PrunerRow
from tokenprune.report.render.columns import Section, legend
from tokenprune.report.render.escaping import markdown_sentence
from tokenprune.report.render.plots import PREFILL, draw, lines_of, sweep_colours
from tokenprune.report.render.sections import cost_sections, leaderboard_section
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.sweep_data import read_sweep
from tokenprune.tracking.run_data import metrics_of

Rewrite = Callable[[Callable[[str, dict[str, Any]], Any]], Path]


@pytest.fixture
def rewrite(finished: FinishedSweep, tmp_path: Path) -> Rewrite:
    """A copy of the sweep in which the cost of every cell is another one."""

    def make(change: Callable[[str, dict[str, Any]], Any]) -> Path:
        copy = finished.copy(tmp_path / "copy")
        store = SweepStore(copy)
        for cell in store.plan():
            path = copy / "cells" / cell.id / "result.json"
            if path.exists():
                result = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps({**result, "cost": change(cell.name, result["cost"])}), encoding="utf-8")
        return copy

    return make


def row(directory: Path, label: str, table: int = 1) -> PrunerRow:
    return {row.label: row for row in leaderboard(directory).tables[table].rows}[label]


def sections(directory: Path) -> list[Section]:
    return list(cost_sections(leaderboard(directory).tables))


def notes(section: Section) -> list[str]:
    """What is said below a table that shows all its columns."""
    return section.shown_notes()


def every_table(text: str, mark: str, meaning: str) -> list[str]:
    """The lines of tables that bear a mark; each table with one says what it means, and no other table does."""
    bearing = []
    for block in re.split(r"\n(?=\*\*)", text):
        block = block.split(legend())[0]
        lines = [line for line in block.splitlines() if line.startswith("|") and mark in line]
        told = f"- {markdown_sentence(mark)}: {meaning}"
        assert (told in block) == bool(lines), block
        bearing += lines
    assert bearing
    return bearing


def quiet(name: str, cost: dict[str, Any]) -> dict[str, Any]:
    return {**cost, "busy": {**cost["busy"], "busy": False}}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": median - 1, "q3": median + 2, "repeats": 12, "low": median - 0.1, "high": median}


def ratio(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "q1": median, "q3": median, "repeats": 6, "low": low, "high": high}


def test_a_row_holds_what_its_cell_measured(finished: FinishedSweep) -> None:
    store = SweepStore(finished.directory)
    (cell,) = [cell for cell in store.plan() if cell.name == "first/toy@4"]
    stored = (store.result(cell.id) or {})["cost"]
    found = row(finished.directory, "first")
    assert found.prefill_ms == stored["prefill_ms"]["median"]
    assert found.prefill_ms_quartiles == (stored["prefill_ms"]["q1"], stored["prefill_ms"]["q3"])
    assert found.over_floor == stored["over_floor"]["median"]
    assert found.overhead_share == stored["overhead_share"]["median"]
    assert found.floor_prefill_ms == stored["floor"]["prefill_ms"]["median"]
    assert found.cost is not None
    assert found.cost.floor_figures["tokens"] == 4
    assert found.cost.spreads["total_ms"].median == stored["total_ms"]["median"]
    assert found.cost.same_kernels
    assert "energy_j" not in found.cost.spreads
    assert "no driver tells" in found.cost.unmeasured["energy_j"]


def test_over_seeds_each_figure_is_a_median(finished: FinishedSweep, rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        return {**quiet(name, cost), "prefill_ms": spread(10.0 if name.endswith("seed 1") else 20.0)}

    found = row(rewrite(change), "random")
    assert found.prefill_ms == 15.0
    assert found.prefill_ms_quartiles == (14.0, 17.0)


def test_the_cost_section_shows_floor_and_overhead(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        floor = {**cost["floor"], "prefill_ms": spread(8.0)}
        return {
            **quiet(name, cost),
            "prefill_ms": spread(12.0),
            "floor": floor,
            "unpruned": {"prefill_ms": spread(16.0)},
            "over_unpruned": ratio(0.75, 0.72, 0.77),
            "over_floor": ratio(1.5, 1.25, 1.75),
            "overhead_share": ratio(0.25, 0.2, 0.3),
            "encoder_ms": {**spread(4.0), "high": 5.0},
        }

    found = sections(rewrite(change))
    assert len(found) == 2
    for section in found:
        lines = {line[0]: dict(zip(section.header, line, strict=True)) for line in section.rows}
        assert set(lines) == {"none", "random", "grid", "downsample", "first"}  # the others have no result
        assert lines["first"]["prefill ms"] == "12.0"
        assert lines["first"]["quartiles"] == "[11.0, 14.0]"
        assert lines["first"]["floor ms"] == "8.0"
        assert lines["first"]["unpruned ms"] == "16.0"
        assert lines["first"]["x none"] == "0.75 [0.72, 0.77]"
        assert lines["first"]["x floor"] == "1.50 [1.25, 1.75]?"  # known to 17 %, and 5 % were asked for
        assert lines["first"]["encoder ms"] == "4.0?"
        assert lines["first"]["pruner %"] == "25.0"
        assert "energy J" not in section.header  # not measured: left out, never 0
    said = " ".join(notes(found[1]))
    assert "cpu, " in said
    assert "attention sdpa, perf_counter" in said
    assert "energy_j: no driver tells about the device `cpu`" in said
    assert "already has the kept length" in said
    assert "below 1 is a speed-up" in said
    assert "\N{DAGGER}" not in said
    assert all(note.startswith("?: not known to") for note in notes(found[0]))  # the rest is said once, at the end


def test_a_busy_device_is_marked_with_a_footnote(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        if not name.startswith("grid"):
            return quiet(name, cost)
        return {**cost, "busy": {"busy": True, "before": {"cpu": 0.05}, "during": {"cpu": 0.42}, "limit": 0.1}}

    copy = rewrite(change)
    assert row(copy, "grid").busy == 0.42
    assert row(copy, "first").busy == 0.0
    text = markdown_report(copy)
    bearing = every_table(text, "\N{DAGGER}", "other work had up to 42 % of the device when this was measured")
    assert all("grid" in line for line in bearing)
    for line in bearing[:2]:
        assert line.count("\N{DAGGER}") == 4  # milliseconds, both ratios, and the pruner's share
    grid = next(line for line in lines_of(leaderboard(copy).tables, PREFILL) if line.label == "grid")
    assert [dot.mark for dot in grid.points] == ["\N{DAGGER}?"] * 2  # two turns: too few for an interval


def test_a_device_that_nobody_could_look_at_has_a_mark_and_a_reason(rewrite: Rewrite) -> None:
    why = "no driver tells about the device"

    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        if not name.startswith("grid"):
            return quiet(name, cost)
        return {**cost, "busy": {"busy": None, "before": {}, "during": {}, "limit": 0.1, "unknown": {"gpu": why}}}

    copy = rewrite(change)
    assert row(copy, "grid").busy is None
    text = markdown_report(copy)
    bearing = every_table(text, "\N{DOUBLE DAGGER}", f"whether other work had the device is not known: {why}")
    assert all("grid" in line for line in bearing)
    assert "\N{DAGGER}" not in text


def test_one_busy_seed_marks_the_row_even_where_another_is_not_known() -> None:
    def cost(busy: bool | None, **more: Any) -> dict[str, Any]:
        return {"prefill_ms": spread(10.0), "busy": {"busy": busy, "before": {"cpu": 0.3}, "during": {}, **more}}

    def found(*costs: dict[str, Any]) -> tuple[float | None, str]:
        summary = summarise_costs(costs)
        assert summary is not None
        return summary.busy, summary.unknown

    unknown = cost(None, unknown={"gpu": "no driver"})
    assert found(unknown, cost(True)) == (0.3, "")
    assert found(cost(False), unknown) == (None, "no driver")
    assert found(cost(False), cost(False)) == (0.0, "")
    assert found({"prefill_ms": spread(10.0)}) == (None, "nobody looked")  # of a version that did not


def test_one_refused_seed_takes_no_cost_away(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        if name.startswith("random") and name.endswith("seed 1"):
            return {"error": "the device is busy", "busy": {**cost["busy"], "busy": True}}
        return {**quiet(name, cost), "prefill_ms": spread(10.0)}

    copy = rewrite(change)
    found = row(copy, "random")
    assert found.prefill_ms == 10.0
    assert found.cost is not None
    assert (found.cost.cells, found.cost.refused) == (2, 1)
    assert markdown_report(copy).count("random: cost not measured for 1 of 2 seeds: the device is busy") == 1


def test_seeds_measured_on_different_devices_are_kept_apart(rewrite: Rewrite) -> None:
    """A median over a CPU and a GPU is of neither."""

    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        fast = name.startswith("random") and name.endswith("seed 1")
        device, ms = ("Fast GPU", 1.0) if fast else ("cpu", 10.0)
        return {**quiet(name, cost), "device": device, "prefill_ms": spread(ms)}

    copy = rewrite(change)
    found = row(copy, "random")
    assert found.prefill_ms == 10.0
    assert found.cost is not None
    assert found.cost.where.startswith("cpu")
    text = markdown_report(copy)
    assert "random: 1 of 2 seeds measured elsewhere, not shown: Fast GPU" in text


def test_rows_measured_on_different_devices_are_named(rewrite: Rewrite) -> None:
    copy = rewrite(lambda name, cost: {**quiet(name, cost), "device": "Fast GPU" if "first" in name else "cpu"})
    text = markdown_report(copy)
    (fast,) = {line for line in text.splitlines() if line.startswith("- one sample, median: Fast GPU")}
    assert fast.endswith(": first")
    assert "measured in several places: " in text


def test_the_front_over_time_is_of_shares_of_the_unpruned_time(rewrite: Rewrite) -> None:
    """Milliseconds would say that `grid`, measured while the machine was slow, is slower than the unpruned model."""

    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        slow = name.startswith("grid")
        share = ratio(0.5 if slow else 0.9, 0.45, 0.95)
        return {**quiet(name, cost), "prefill_ms": spread(90.0 if slow else 20.0), "over_unpruned": share}

    board = leaderboard(rewrite(change))
    (front,) = [front for front in board.summaries[0].fronts if front.cost == "over_unpruned"]
    assert front.reference == 1.0
    whole = {row.label: row for row in board.tables[0].rows}
    assert front.hypervolumes["grid"] == pytest.approx(
        0.5
        * max(row.accuracy.mean for table in board.tables for row in table.rows if row.label == "grid" and row.accuracy)
    )
    lines = {line.label: line.points for line in lines_of(board.tables, PREFILL)}
    assert [dot.x for dot in lines["none"]] == [1.0]
    assert {(dot.x, dot.left, dot.right) for dot in lines["grid"]} == {(0.5, 0.45, 0.95)}
    floor = whole["grid"].floor_over_unpruned  # the median of ratios of the same turns
    assert floor is not None
    assert floor in {dot.floor for dot in lines["grid"]}


def test_the_plot_over_time_has_intervals_marks_and_floors(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        busy = {"busy": "grid" in name, "before": {"cpu": 0.5}, "during": {}, "limit": 0.1}
        shares = {"over_unpruned": ratio(0.5, 0.49, 0.53), "floor_over_unpruned": ratio(0.25, 0.24, 0.26)}
        return {**cost, **shares, "busy": busy}

    copy = rewrite(change)
    board = leaderboard(copy)
    plot = draw(board.tables, PREFILL, sweep_colours(read_sweep(copy)))
    assert plot is not None
    (axes,) = plot.figure.axes
    series = {line.label: f"series-{place}" for place, line in enumerate(lines_of(board.tables, PREFILL))}

    def bars(label: str) -> list[list[float]]:
        """The intervals along the axis of one pruner, from left to right."""
        parts = [part.get_segments() for part in axes.collections if part.get_gid() == series[label]]
        return [[x for x, _ in one] for found in parts for one in found if one[0][0] < one[1][0]]

    assert bars("first") == [pytest.approx([0.49, 0.53])] * 2
    marks = {text.get_gid(): text.get_text() for text in axes.texts}
    assert marks == {series["grid"]: "\N{DAGGER}"}
    assert [text.get_text() for text in axes.texts] == ["\N{DAGGER}"] * 2
    floors = [line.get_xdata()[0] for line in axes.lines if str(line.get_gid()).endswith("-floor")]
    assert set(floors) == {0.25}
    assert "floor: were choosing free" in plot.svg()


def test_results_without_the_unpruned_time_have_no_front_over_it(rewrite: Rewrite) -> None:
    copy = rewrite(lambda name, cost: {key: value for key, value in cost.items() if "unpruned" not in key})
    board = leaderboard(copy)
    assert [front.cost for front in board.summaries[0].fronts] == ["layer_average"]
    assert board.summaries[0].unmeasured == {"over_unpruned": "not measured"}
    assert lines_of(board.tables, PREFILL) == []
    text = markdown_report(board)
    assert "x none |" not in text
    assert "x floor |" in text


def test_a_refused_cost_is_said_and_has_no_figures(rewrite: Rewrite) -> None:
    refusal = {
        "error": "the device is busy: other work had 42 % of the CPU before it",
        "hint": "measure on a quiet device",
        "busy": {"busy": True, "before": {"cpu": 0.42}, "during": {}, "limit": 0.1},
    }
    copy = rewrite(lambda name, cost: refusal if name.startswith("grid") else quiet(name, cost))
    found = row(copy, "grid")
    assert (found.prefill_ms, found.kv_mib, found.over_floor) == (None, None, None)
    assert found.accuracy is not None  # the answers are not the cost's matter
    text = markdown_report(copy)
    # said once: it is the same at both budgets
    assert text.count("grid: cost not measured: the device is busy: other work had 42 % of the CPU before it") == 1


def test_where_every_cost_was_refused_there_are_only_the_reasons(rewrite: Rewrite) -> None:
    found = sections(
        rewrite(lambda name, cost: {"error": "the device is busy", "busy": {**cost["busy"], "busy": True}})
    )
    assert [section.header for section in found] == [("pruner", "not measured")] * 2
    assert all(("first", "the device is busy") in section.rows for section in found)
    assert all("\N{DAGGER}" not in note for section in found for note in notes(section))


def test_medians_that_are_not_known_well_are_marked(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        met = not name.startswith("first")
        return {**quiet(name, cost), "precision": {"repeats": 7, "tolerance": 0.05, "uncertainty": 0.2, "met": met}}

    found = sections(rewrite(change))
    for section in found:
        repeats = {line[0]: line[section.header.index("repeats")] for line in section.rows}
        assert {label for label, text in repeats.items() if text.endswith("?")} == {"first"}
    assert [sum(note.startswith("?: not known to within 5 %") for note in notes(it)) for it in found] == [1, 1]


def test_what_cannot_be_told_from_1_is_no_speed_up_anywhere(rewrite: Rewrite) -> None:
    """Neither in a table, nor in a front, a hypervolume, a figure, or what a tracker is told."""
    ratios = {
        "first": ratio(0.93, 0.9, 1.02),  # faster in the median only
        "grid": ratio(0.93, 0.9, 0.97),
        "random": ratio(1.04, 0.98, 1.2),
        "downsample": ratio(1.04, 1.01, 1.07),
        "none": ratio(0.99, 0.97, 1.01),
    }

    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        found = ratios[name.split("/")[0]]
        return {**quiet(name, cost), "over_unpruned": found, "over_floor": found, "prefill_ms": spread(20.0)}

    copy = rewrite(change)
    board = leaderboard(copy)
    shown = {
        "first": "~1 [0.90, 1.02]?",
        "grid": "0.93 [0.90, 0.97]",
        "random": "~1 [0.98, 1.20]?",
        "downsample": "1.04 [1.01, 1.07]",
        "none": "~1 [0.97, 1.01]",
    }
    for table in board.tables:
        board_section = leaderboard_section(table)
        for line in (dict(zip(board_section.header, line, strict=True)) for line in board_section.rows):
            expected = shown.get(line["pruner"], "-")
            assert (line["x none"], line["x floor"]) == (expected, expected)
    for section in cost_sections(board.tables):
        for cells in (dict(zip(section.header, line, strict=True)) for line in section.rows):
            assert cells["x none"] == cells["x floor"] == shown[cells["pruner"]]
    text = markdown_report(copy)
    every_table(text, "~1", "the 95 % interval holds 1, so neither a speed-up nor a slow-down is known")
    (front,) = [front for front in board.summaries[0].fronts if front.cost == "over_unpruned"]
    assert {label for label, volume in front.hypervolumes.items() if volume > 0.0} == {"grid"}
    assert {point.cost for point in front.points} <= {0.93, 1.0, 1.04}
    assert {point.text for point in front.points if point.label == "grid"} <= {"0.93 [0.90, 0.97]"}
    dots = {line.label: line.points for line in lines_of(board.tables, PREFILL)}
    assert {label: {(dot.x, dot.mark) for dot in found} for label, found in dots.items()} == {
        "none": {(1.0, "")},
        "first": {(1.0, "~?")},
        "grid": {(0.93, "")},
        "random": {(1.0, "~?")},
        "downsample": {(1.04, "")},
    }
    store = SweepStore(copy)
    for cell in store.plan():
        result = store.result(cell.id)
        if result is not None:
            told = metrics_of(result)
            found = ratios[cell.name.split("/")[0]]
            assert told["cost/over_unpruned_counted"] == (found["median"] if "~" not in shown[cell.label] else 1.0)
            assert (told["cost/over_unpruned_low"], told["cost/over_unpruned_high"]) == (found["low"], found["high"])
            assert told["cost/precision_met"] == 0.0


def test_ratios_without_an_interval_are_marked_in_every_table(finished: FinishedSweep) -> None:
    """Two turns are too few for one, and so it was in older versions."""
    text = markdown_report(finished.directory)
    bearing = every_table(text, "?", "not known to within 5 %")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and any(re.fullmatch(r"\d+\.\d\d\W*\?", cell) for cell in cells):
            assert line in bearing
    table = leaderboard_section(leaderboard(finished.directory).tables[0])
    ratios = [line[table.header.index(name)] for line in table.rows for name in ("x none", "x floor")]
    assert all(text == "-" or text.endswith("?") for text in ratios)


def test_different_attention_kernels_are_said(rewrite: Rewrite) -> None:
    found = sections(rewrite(lambda name, cost: {**cost, "kernels": ["another_attention"]}))
    assert any("different attention kernels (another_attention" in note for note in notes(found[-1]))


def test_costs_of_an_older_version_are_shown_as_far_as_they_go(rewrite: Rewrite) -> None:
    old = ("prefill_ms", "decode_ms_per_token", "total_ms", "overhead_ms", "peak_mem_mib", "kv_mib", "prefill_tflops")
    copy = rewrite(lambda name, cost: {key: cost[key] for key in (*old, "new_tokens", "device", "threads")})
    found = row(copy, "first")
    assert found.prefill_ms is not None
    assert (found.over_floor, found.floor_prefill_ms, found.overhead_share, found.busy) == (None,) * 4
    for section in sections(copy):
        assert {"prefill ms", "pruner ms", "GFLOPs"} <= set(section.header)
        assert not {"x floor", "floor ms", "pruner %"} & set(section.header)


def test_where_nothing_was_measured_there_is_no_section(rewrite: Rewrite) -> None:
    assert sections(rewrite(lambda name, cost: None)) == []


def test_a_figure_that_one_seed_lacks_is_left_out() -> None:
    first = {"prefill_ms": spread(10.0), "kv_mib": 1.0, "total_ms": spread(20.0)}
    second = {"prefill_ms": spread(14.0), "kv_mib": None}
    found = summarise_costs([first, second])
    assert found is not None
    assert found.spreads == {"prefill_ms": Quartiles(12.0, 11.0, 14.0, 11.9, 12.0)}
    few = {name: value for name, value in spread(14.0).items() if name not in ("low", "high")}
    mixed = summarise_costs([first, {"prefill_ms": few}])
    assert mixed is not None
    assert mixed.spreads == {"prefill_ms": Quartiles(12.0, 11.0, 14.0)}
    assert mixed.unsure("prefill_ms")
    assert found.figures == {}
    assert summarise_costs([]) is None


def test_the_table_has_the_columns(finished: FinishedSweep) -> None:
    text = markdown_report(finished.directory)
    assert re.search(r"\| prefill ms \| quartiles \| x none \| x floor \| pruner % \|", text)
