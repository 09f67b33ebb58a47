"""`evaluate` in a notebook: the rows of a sweep, tasks by name or of one's own, errors and mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.sweep.fixtures import Workshop
from tests.sweep.tiny import TOKENS
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.errors import BudgetError, ConfigError, NothingPrunedError, UnknownNameError
from tokenprune.evaluation.evaluate import EvaluationResult, OwnSamples, evaluate
from tokenprune.sweep import SweepOutcome, SweepStore

PLAIN: dict[str, Any] = {"efficiency": False, "lens": False, "overlays": 0}


@pytest.fixture(scope="module")
def loaded(workshop: Workshop) -> LoadedModel:
    return load_model(str(workshop.model), host=workshop.host)


@pytest.fixture
def ask(workshop: Workshop, loaded: LoadedModel) -> Callable[..., EvaluationResult]:
    """Evaluate the tiny model on the toy task."""

    def run(pruner: Any = "grid", budget: Any = 4, **changes: Any) -> EvaluationResult:
        return evaluate(loaded, pruner, budget, **{"task": "toy", "limit": 8, "host": workshop.host, **changes})

    return run


def test_it_gives_what_a_sweep_gives(ask: Callable[..., EvaluationResult], sweep: Callable[..., SweepOutcome]) -> None:
    directory = sweep(pruners=["random"], budgets=["25%"], batch_size=3, **PLAIN).directory
    store = SweepStore(directory)
    none, random = store.plan()
    for cell, found in ((none, ask("none", 1.0, batch_size=3)), (random, ask("random", "25%", batch_size=3))):
        stored = [{name: value for name, value in row.items() if name != "kl"} for row in store.samples(cell.id)]
        assert [dict(row) for row in found.rows] == stored
        result = store.result(cell.id) or {}
        assert found.accuracy == result["quality"]["accuracy"]
        assert found.families == {name: each["accuracy"] for name, each in result["quality"]["families"].items()}
        assert found.tokens == result["tokens"]
    assert (found.tokens["original"], found.tokens["final"]) == (TOKENS, TOKENS // 4)


def test_rows_come_batch_by_batch(ask: Callable[..., EvaluationResult]) -> None:
    seen: list[list[str]] = []
    found = ask(batch_size=3, sink=lambda rows: seen.append([row["id"] for row in rows]))
    assert [len(batch) for batch in seen] == [3, 3, 2]
    assert [row["id"] for row in found.rows] == [name for batch in seen for name in batch]


def test_options_of_a_pruner_are_keywords(ask: Callable[..., EvaluationResult]) -> None:
    early, late = (ask("fastv", layer=layer).tokens["layer_average"] for layer in (1, 3))
    assert early is not None
    assert late is not None
    assert early < late


def test_samples_and_tasks_of_ones_own(ask: Callable[..., EvaluationResult], workshop: Workshop) -> None:
    task = workshop.host.tasks.get("toy").build()
    assert ask(task=task).rows == ask().rows
    samples = [task[index] for index in range(2)]
    (first, second) = ask(task=samples, max_new_tokens=3).rows
    assert (first["prediction"], second["prediction"]) == tuple(row["prediction"] for row in ask().rows[:2])
    right = [dataclasses.replace(samples[0], answer=f" {first['prediction'].upper()}"), samples[1]]
    assert [row["score"] for row in ask(task=right, max_new_tokens=3).rows] == [1.0, 0.0]
    assert OwnSamples(samples).score("Red ", dataclasses.replace(samples[0], answer="red")) == 1.0


def test_a_sample_that_fails_counts_as_wrong(ask: Callable[..., EvaluationResult], workshop: Workshop) -> None:
    task = workshop.host.tasks.get("toy").build({"size": 8, "bad": 4})
    found = ask(task=task)
    assert (found.errors, len(found.rows)) == (1, 8)
    assert found.rows[4]["error"] == "ValueError: this sample cannot be scored"
    assert found.accuracy == sum(row["score"] for row in found.rows) / 8


def test_what_fails_everywhere_is_raised(ask: Callable[..., EvaluationResult]) -> None:
    with pytest.raises(ZeroDivisionError, match="boom"):
        ask("exploding")
    with pytest.raises(BudgetError, match="no budget pleases me"):
        ask("refusing")
    with pytest.raises(NothingPrunedError, match="`lazy` was asked to keep 4 of 16"):
        ask("lazy")


def test_mistakes_are_told(ask: Callable[..., EvaluationResult]) -> None:
    with pytest.raises(UnknownNameError, match="unknown pruner `grd`"):
        ask("grd")
    with pytest.raises(UnknownNameError, match="unknown task `tyo`"):
        ask(task="tyo")
    with pytest.raises(BudgetError):
        ask("grid", 1.5)
    with pytest.raises(BudgetError, match="`grid` needs a budget"):
        ask("grid", None)
    with pytest.raises(ConfigError, match="limt"):
        ask("fastv", limt=3)
    with pytest.raises(ConfigError, match="no samples"):
        ask(task=[])


def test_the_model_is_as_it_was(ask: Callable[..., EvaluationResult], loaded: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    ask("fastv")
    assert not any(hooks for module in loaded.model.modules() for hooks in (module._forward_pre_hooks,))
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
