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
from tokenprune.report.costs import Quartiles, summarise_costs
from tokenprune.report.rows import Row
from tokenprune.report.sections import Section, cost_sections
from tokenprune.sweep import Ledger

Rewrite = Callable[[Callable[[str, dict[str, Any]], Any]], Path]


@pytest.fixture
def rewrite(finished: FinishedSweep, tmp_path: Path) -> Rewrite:
    """A copy of the sweep in which the cost of every cell is another one."""

    def make(change: Callable[[str, dict[str, Any]], Any]) -> Path:
        copy = finished.copy(tmp_path / "copy")
        ledger = Ledger(copy)
        for cell in ledger.plan():
            path = copy / "cells" / cell.id / "result.json"
            if path.exists():
                result = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps({**result, "cost": change(cell.name, result["cost"])}), encoding="utf-8")
        return copy

    return make


def row(directory: Path, label: str, table: int = 1) -> Row:
    return {row.label: row for row in leaderboard(directory).tables[table].rows}[label]


def sections(directory: Path) -> list[Section]:
    return list(cost_sections(leaderboard(directory).tables))


def quiet(name: str, cost: dict[str, Any]) -> dict[str, Any]:
    return {**cost, "busy": {**cost["busy"], "busy": False}}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": median - 1, "q3": median + 2, "repeats": 5}


def test_a_row_holds_what_its_cell_measured(finished: FinishedSweep) -> None:
    ledger = Ledger(finished.directory)
    (cell,) = [cell for cell in ledger.plan() if cell.name == "first/toy@4"]
    stored = (ledger.result(cell.id) or {})["cost"]
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
            "over_floor": {"median": 1.5, "q1": 1.4, "q3": 1.75, "repeats": 5},
            "overhead_share": {"median": 0.25, "q1": 0.2, "q3": 0.3, "repeats": 5},
        }

    found = {section.title.rsplit(" ", 2)[-2]: section for section in sections(rewrite(change))}
    assert len(found) == 2
    for section in found.values():
        lines = {line[0]: dict(zip(section.header, line, strict=True)) for line in section.rows}
        assert set(lines) == {"none", "random", "grid", "downsample", "first"}  # the others have no result
        assert lines["first"]["prefill ms"] == "12.0"
        assert lines["first"]["quartiles"] == "[11.0, 14.0]"
        assert lines["first"]["floor ms"] == "8.0"
        assert lines["first"]["x floor"] == "1.50"
        assert lines["first"]["x floor quartiles"] == "[1.40, 1.75]"
        assert lines["first"]["pruner %"] == "25.0"
        assert "energy J" not in section.header  # not measured: left out, never 0
        notes = " ".join(section.notes)
        assert "cpu, " in notes
        assert "attention sdpa, perf_counter" in notes
        assert "energy_j: no driver tells about the device `cpu`" in notes
        assert "already has the kept length" in notes
        assert "\N{DAGGER}" not in notes


def test_a_busy_device_is_marked_with_a_footnote(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        if not name.startswith("grid"):
            return quiet(name, cost)
        return {**cost, "busy": {"busy": True, "before": {"cpu": 0.05}, "during": {"cpu": 0.42}, "limit": 0.1}}

    copy = rewrite(change)
    assert row(copy, "grid").busy == 0.42
    assert row(copy, "first").busy == 0.0
    text = markdown_report(copy)
    marked = {line.split("|")[1].strip(): line for line in text.splitlines() if "\N{DAGGER} |" in line}
    assert len([line for line in text.splitlines() if "\N{DAGGER} |" in line]) == 4  # two tables, two sections
    assert all("grid" in line for line in marked.values())
    assert text.count("\N{DAGGER}: other work had up to 42 % of the device when this was measured") == 4


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
    assert text.count("grid: cost refused: the device is busy: other work had 42 % of the CPU before it") == 2


def test_where_every_cost_was_refused_there_are_only_the_reasons(rewrite: Rewrite) -> None:
    found = sections(
        rewrite(lambda name, cost: {"error": "the device is busy", "busy": {**cost["busy"], "busy": True}})
    )
    assert [section.header for section in found] == [("pruner", "refused")] * 2
    assert all(("first", "the device is busy") in section.rows for section in found)
    assert all("\N{DAGGER}" not in note for section in found for note in section.notes)


def test_medians_that_are_not_known_well_are_marked(rewrite: Rewrite) -> None:
    def change(name: str, cost: dict[str, Any]) -> dict[str, Any]:
        met = not name.startswith("first")
        return {**quiet(name, cost), "precision": {"repeats": 7, "tolerance": 0.05, "uncertainty": 0.2, "met": met}}

    for section in sections(rewrite(change)):
        repeats = {line[0]: line[section.header.index("repeats")] for line in section.rows}
        assert {label for label, text in repeats.items() if text.endswith("?")} == {"first"}
        assert any("ran out before the medians were known" in note for note in section.notes)


def test_different_attention_kernels_are_said(rewrite: Rewrite) -> None:
    found = sections(rewrite(lambda name, cost: {**cost, "kernels": ["another_attention"]}))
    assert all(any("different attention kernels (another_attention" in note for note in it.notes) for it in found)


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
    assert found.spreads == {"prefill_ms": Quartiles(12.0, 11.0, 14.0)}
    assert found.figures == {}
    assert summarise_costs([]) is None


def test_the_table_has_the_columns(finished: FinishedSweep) -> None:
    text = markdown_report(finished.directory)
    assert re.search(r"\| prefill ms \| quartiles \| x floor \| pruner % \|", text)
