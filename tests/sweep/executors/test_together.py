"""Cells that run together end as if each had run by itself, whatever happens to the cells beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sweep.fixtures import PRUNERS, Workshop
from tokenprune.evaluation.evaluate import Evaluation
from tokenprune.sweep import SweepOutcome, SweepStore
from tokenprune.sweep.runner import run_sweep

TIMED = ("started", "seconds", "worker", "cost")
PLAIN: dict[str, Any] = {"efficiency": False, "overlays": 1, "lens": {"samples": 2}}


@pytest.fixture
def run(workshop: Workshop, tmp_path: Path) -> Callable[..., SweepOutcome]:
    """An untracked sweep in a folder named for its `share`."""

    def run(share: int, **changes: Any) -> SweepOutcome:
        config = workshop.config(share=share, **{**PLAIN, **changes})
        return run_sweep(config, directory=tmp_path / f"share-{share}", host=workshop.host, track=False)

    return run


def outcomes(directory: Path) -> dict[str, Any]:
    """Everything that the cells of a sweep left, but times."""
    store = SweepStore(directory)
    found = {}
    for cell in store.plan():
        result, error = store.result(cell.id), store.error(cell.id)
        found[cell.name] = {
            "result": result and {key: value for key, value in result.items() if key not in TIMED},
            "error": error and {key: error[key] for key in ("outcome", "type", "message", "attempts", "batch_size")},
            "samples": store.samples(cell.id) if result else None,
            "overlays": _read(store.cell_directory(cell.id) / "overlays.json"),
        }
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


@pytest.mark.parametrize(
    "task",
    [
        pytest.param({"size": 8}, id="good samples", marks=pytest.mark.thorough),
        pytest.param({"size": 8, "bad": 4}, id="one bad sample"),
    ],
)
def test_together_is_as_alone(run: Callable[..., SweepOutcome], task: dict[str, Any]) -> None:
    many = [*PRUNERS, "iwp", "fastv", "visionzip", "divprune"]
    tasks = [{"name": "toy", "options": task}]
    alone, together = (outcomes(run(share, pruners=many, tasks=tasks).directory) for share in (1, 12))
    assert any(each["error"] for each in alone.values())
    assert sum(1 for each in alone.values() if each["result"]) > 6
    assert together == alone


def test_cells_are_asked_batch_by_batch(run: Callable[..., SweepOutcome], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, bool]] = []
    whole = Evaluation.evaluate_batch

    def ask(self: Evaluation, batch: Any, memo: Any = None) -> None:
        budget = "all" if self.unpruned else self.pruning.budget.label()
        asked.append((budget, batch.indices[0], memo is not None))
        whole(self, batch, memo)

    monkeypatch.setattr(Evaluation, "evaluate_batch", ask)
    run(12, pruners=["first"], budgets=[4, 2])
    assert asked == [
        *(("all", start, False) for start in (0, 3, 6)),
        *((budget, start, True) for start in (0, 3, 6) for budget in ("4", "2")),
    ]


def test_a_cell_without_memory_beside_others_is_run_by_itself_first(
    run: Callable[..., SweepOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluation.evaluate_batch

    def ask(self: Evaluation, batch: Any, memo: Any = None) -> None:
        if memo is not None and self.pruning.budget.tokens == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(self, batch, memo)

    monkeypatch.setattr(Evaluation, "evaluate_batch", ask)
    outcome = run(12, pruners=["first"], budgets=[4, 2, 1])
    assert (outcome.done, outcome.failed) == (4, 0)
    for each in outcomes(outcome.directory).values():
        assert (each["result"]["attempts"], each["result"]["batch_size"]) == (1, 3)  # no smaller batches were needed
        assert [row["index"] for row in each["samples"]] == list(range(8))
