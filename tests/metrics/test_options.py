"""The key `efficiency` of a sweep file: what is allowed, and what it does to the ids of cells."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune.errors import ConfigError
from tokenprune.evaluation.machine.busy import Busy, Watch
from tokenprune.report import markdown_report
from tokenprune.sweep import SweepOutcome, SweepStore, plan_cells
from tokenprune.sweep.config.schema import EfficiencyConfig

LATER = [
    {"max_repeats": 19},
    {"tolerance": 0.01},
    {"threads": 2},
    {"busy": "refuse"},
    {"floor": False},
    {"time_limit_s": 9.0},
]


def cell_of(workshop: Workshop, **efficiency: Any) -> Any:
    return plan_cells(workshop.config(efficiency=efficiency), workshop.host)[0]


def test_a_file_that_does_not_set_the_later_options_keeps_its_costs(workshop: Workshop) -> None:
    """The settings of a cell are what they were when there were three options."""
    assert cell_of(workshop).efficiency == {"warmup": 1, "repeats": 12, "new_tokens": 8}
    assert cell_of(workshop, repeats=3, tolerance=0.05, busy="mark", floor=True, time_limit_s=4).efficiency == {
        "warmup": 1,
        "repeats": 3,
        "new_tokens": 8,
    }


@pytest.mark.parametrize("option", LATER)
def test_one_that_is_set_is_another_measurement_of_the_same_cell(workshop: Workshop, option: dict[str, Any]) -> None:
    cell = cell_of(workshop, **option)
    assert cell.efficiency == {"warmup": 1, "repeats": 12, "new_tokens": 8, **option}
    assert cell.id == cell_of(workshop).id


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"busy": "wait"}, "efficiency.busy: input should be 'mark' or 'refuse', got 'wait'"),
        ({"tolerance": 0}, "efficiency.tolerance: input should be greater than 0, got 0"),
        ({"tolerance": float("inf")}, "efficiency.tolerance: input should be a finite number, got inf"),
        ({"time_limit_s": 0}, "efficiency.time_limit_s: input should be greater than 0, got 0"),
        ({"threads": 0}, "efficiency.threads: input should be greater than or equal to 1, got 0"),
        ({"repeats": 5, "max_repeats": 4}, "efficiency.max_repeats: fewer than the 5 that `repeats` asks for, got 4"),
        ({"flor": False}, "efficiency.flor: unknown key, did you mean `floor`?"),
    ],
)
def test_a_wrong_option_is_one_line(workshop: Workshop, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        workshop.config(efficiency=option)
    assert message in raised.value.message
    assert "\n" not in raised.value.message


def test_the_resolved_file_reads_back_equal(workshop: Workshop) -> None:
    config = workshop.config(efficiency={"busy": "refuse", "max_repeats": 30, "threads": 1})
    again = workshop.config(efficiency=config.to_json()["efficiency"])
    assert again.efficiency == config.efficiency


def test_every_option_is_documented_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sweep-files.md").read_text(encoding="utf-8")
    section = text.split("## Efficiency\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    config = EfficiencyConfig().model_dump(exclude={"enabled"})
    assert list(rows) == list(config)
    plain = {name: value for name, value in config.items() if value is not None}
    assert {name: rows[name].strip().strip("`") for name in plain} == {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in plain.items()
    }


def test_a_refused_measurement_costs_no_answers(
    sweep: Callable[..., SweepOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cell is done, its cost is one line, and a report says so."""
    loud = Busy(True, {"cpu": 0.6}, {})
    monkeypatch.setattr(Watch, "before", lambda self: loud)
    outcome = sweep(pruners=["first"], budgets=[4], efficiency={"busy": "refuse"})
    assert (outcome.done, outcome.failed) == (2, 0)
    store = SweepStore(outcome.directory)
    for cell in store.plan():
        result = store.result(cell.id) or {}
        assert result["quality"]["questions"] == 8
        assert result["cost"]["error"] == "the device is busy: other work had 60 % of the CPU before it"
    text = markdown_report(outcome.directory)
    assert "| first | the device is busy: other work had 60 % of the CPU before it |" in text


def test_the_measurement_of_a_cell_is_what_its_settings_say(sweep: Callable[..., SweepOutcome]) -> None:
    asked = {"warmup": 0, "repeats": 1, "max_repeats": 1, "new_tokens": 1, "threads": 1, "floor": False}
    outcome = sweep(pruners=["first"], budgets=[4], efficiency=asked)
    store = SweepStore(outcome.directory)
    for cell in store.plan():
        cost = (store.result(cell.id) or {})["cost"]
        assert (cost["prefill_ms"]["repeats"], cost["new_tokens"], cost["threads"]) == (2, 1, 1)  # in pairs
        assert (cost["floor"], cost["over_floor"]) == (None, None)
        assert cost["precision"]["met"] is False
