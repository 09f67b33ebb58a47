"""Costs are measured after the answers and at no risk to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.sweep.fixtures import Workshop
from tests.tracking.places import place_of
from tokenprune.cells.events import CellStarted
from tokenprune.errors import IncompatibleError
from tokenprune.report import markdown_report
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep
from tokenprune.sweep.worker import cell_cost as measuring

Run = Callable[..., SweepOutcome]
QUICK = {"repeats": 1, "max_repeats": 1, "warmup": 0, "new_tokens": 1}


def results(directory: Path) -> dict[str, dict[str, Any]]:
    store = SweepStore(directory)
    return {cell.name: store.result(cell.id) or {} for cell in store.plan()}


@pytest.mark.parametrize(
    ("error", "text", "hint"),
    [
        (RuntimeError("profiler broke\nmore"), "RuntimeError: profiler broke", "the worker's log"),
        (IncompatibleError("it runs otherwise", hint="reset it"), "it runs otherwise", "reset it"),
        (MemoryError(), "MemoryError", "the worker's log"),
    ],
)
def test_a_measurement_that_fails_is_a_cost_with_an_error(
    sweep: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str, hint: str
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(measuring, "measure_cost", broken)
    outcome = sweep(pruners=["first"], budgets=[4], efficiency=QUICK)
    assert (outcome.done, outcome.failed, outcome.refused) == (2, 0, 0)
    for result in results(outcome.directory).values():
        assert result["cost"]["error"] == text
        assert result["cost"]["hint"].startswith(hint)
        assert result["quality"]["questions"] == 8
    assert text in markdown_report(outcome.directory)


def test_a_first_sample_that_fails_is_wrong_and_the_next_one_is_measured(sweep: Run) -> None:
    task = {"name": "toy", "options": {"size": 8, "bad": 0}}
    outcome = sweep(pruners=["first"], budgets=[4], tasks=[task], efficiency=QUICK)
    assert (outcome.done, outcome.failed) == (2, 0)
    for result in results(outcome.directory).values():
        assert (result["quality"]["questions"], result["quality"]["errors"]) == (8, 1)
        assert result["cost"]["prefill_ms"]["median"] > 0
    assert results(outcome.directory)["first/toy@4"]["against_none"]["kl"] > 0


@pytest.mark.thorough
def test_another_way_to_measure_keeps_the_answers(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked again, the sweep says so, and MLflow holds the new costs in the runs that it has."""

    def run(**efficiency: Any) -> tuple[SweepOutcome, list[Any]]:
        events: list[Any] = []
        config = workshop.config(pruners=["first"], budgets=[4], efficiency={**QUICK, **efficiency})
        outcome = run_sweep(config, directory=directory, host=workshop.host, display=events.append)
        return outcome, [event.phase for event in events if isinstance(event, CellStarted)]

    first, parts = run()
    assert parts == ["answers", "cost", "answers", "cost"]
    assert first.changes == ()
    answered = {name: result["quality"] for name, result in results(directory).items()}
    second, parts = run(new_tokens=2)
    assert parts == ["cost", "cost"]
    assert second.changes == ("2 cells keep their answers, and the cost is measured again: `efficiency` changed",)
    found = results(directory)
    assert {name: result["quality"] for name, result in found.items()} == answered
    assert {result["cost"]["new_tokens"] for result in found.values()} == {2}
    client = MlflowClient(tracking_uri=place_of(second).uri)
    runs = client.search_runs([place_of(second).experiment_id], "tags.`tokenprune.kind` = 'cell'")
    assert len(runs) == 2
    for each in runs:
        (result,) = [r for r in found.values() if r["id"] == each.data.tags["tokenprune.cell_id"]]
        assert each.data.metrics["cost/prefill_ms"] == result["cost"]["prefill_ms"]["median"]
    third, parts = run(new_tokens=2)
    assert (third.done, third.skipped, parts) == (2, 2, [])
