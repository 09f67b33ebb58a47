"""The calibrations of FitPrune and VTW."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stops import (
    RANDOM_LLAVA,
    SHALLOW,
    build,
)
from tokenprune_zoo import FitPrune
from torch import Tensor

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError, IncompatibleError
from tokenprune.plugins import default_host
from tokenprune.pruner import ModelFacts, Prefill, Pruner


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8), st.floats(0.0, 1.0), st.floats(0.1, 2.0))
def test_deletable_is_the_largest_prefix_that_leaves_enough(
    masses: list[float], tolerance: float, reference: float
) -> None:
    mass = torch.tensor([masses])
    gone = FitPrune.deletable(mass, torch.tensor([reference]), tolerance)[0]
    order = sorted(range(len(masses)), key=lambda token: (masses[token], token))
    assert set(gone.nonzero().squeeze(-1).tolist()) == set(order[: int(gone.sum())])
    enough, slack = (1.0 - tolerance) * reference, 1e-5
    left = [sum(masses) - sum(masses[token] for token in order[:count]) for count in range(len(masses) + 1)]
    count = int(gone.sum())
    assert count == 0 or left[count] >= enough - slack
    assert count == len(masses) or left[count + 1] < enough + slack


@dataclass(frozen=True)
class OnModel:
    """A calibrator of the tests: one prompt at a time on a random model."""

    model: Any
    prompts: tuple[Any, ...]
    facts: ModelFacts = RANDOM_LLAVA
    tokens: int = TOKENS

    def run(self, pruner: Pruner, budget: Budget) -> list[Prefill]:
        found = []
        for inputs in self.prompts:
            with torch.no_grad(), pruned(self.model, pruner, budget) as session:
                logits = self.model(**inputs).logits[0, -1]
            found.append(Prefill(session.last, logits))
        return found


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava(layers=6)


@pytest.fixture(scope="module")
def calibrator(model: Any) -> OnModel:
    return OnModel(model, tuple(batch([prompt(seed)]) for seed in (1, 2, 3)))


def eager_masses(model: Any, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Self and cross mass of every visual token in every layer of the unpruned model, from its own attentions."""
    stock = random_llava("eager", layers=6)
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        attentions = stock(**inputs, output_attentions=True).attentions
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    after = torch.arange(int(slots[-1]) + 1, inputs["input_ids"].shape[1])
    largest = [layer[0].amax(dim=0)[:, slots] for layer in attentions]
    return [(rows[slots].mean(dim=0), rows[after].mean(dim=0)) for rows in largest]


def test_the_references_of_a_calibration_are_the_masses_of_the_unpruned_model(calibrator: OnModel, model: Any) -> None:
    from tokenprune_zoo.fitprune import _Noting

    noting = _Noting()
    calibrator.run(noting, Budget(ratio=1.0))
    assert len(noting.references) == 3
    for noted, inputs in zip(noting.references, calibrator.prompts, strict=True):
        for layer, both in enumerate(eager_masses(model, inputs)):
            (found,) = (value for (_, at), value in noted.items() if at == layer)
            torch.testing.assert_close(found, torch.stack([mass.sum() for mass in both]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("account", "tokens"),
    [
        ("average", 6),
        pytest.param("kept", 3, marks=pytest.mark.thorough),
        pytest.param("average", 10, marks=pytest.mark.thorough),
        pytest.param("kept", 8, marks=pytest.mark.thorough),
    ],
)
def test_a_calibrated_table_meets_its_budget_and_less_tolerance_would_not(
    account: Any, tokens: int, calibrator: OnModel, model: Any
) -> None:
    from tokenprune_zoo.fitprune import _Noting, _Trial

    budget = Budget(tokens=tokens, account=account)
    found = build("fitprune").calibrate(calibrator, budget)
    table = found["tables"][str(tokens)]
    assert len(table) == 6
    assert all(type(count) is int for count in table)
    tabled = build("fitprune", **found)
    with torch.no_grad(), pruned(model, tabled, budget) as session:
        model(**batch([prompt(9), prompt(1)]))
    record = session.last
    measured = record.final() if account == "kept" else record.layer_average()
    assert max(measured) <= tokens
    # a tolerance finer than the search's gives the table; the next smaller one of the search misses the budget
    noting = _Noting()
    calibrator.run(noting, Budget(ratio=1.0))

    def scheme(step: int) -> tuple[int, ...]:
        trial = _Trial(tolerance=step / 128, references=tuple(noting.references), budget=budget)
        runs = [prefill.record.units for prefill in calibrator.run(trial, Budget(ratio=1.0))]
        return tuple(sum(units[layer].before - units[layer].kept for units in runs) // len(runs) for layer in range(6))

    def left(deleted: tuple[int, ...]) -> float:
        sizes = [TOKENS, *(TOKENS - gone for gone in itertools.accumulate(deleted))]
        return sizes[-1] if account == "kept" else sum((a + b) / 2 for a, b in itertools.pairwise(sizes)) / 6

    low, high = 0, 128
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(scheme(middle)) <= tokens else (middle, high)
    assert scheme(high) == tuple(table)
    assert left(scheme(low)) > tokens >= left(tuple(table))


def test_a_calibration_stops_deleting_where_the_budget_is_met(calibrator: OnModel) -> None:
    """Each sample loses at least what the budget asks, and nothing more once it has."""
    from tokenprune_zoo.fitprune import _Noting, _Trial

    noting = _Noting()
    calibrator.run(noting, Budget(ratio=1.0))
    for budget in (Budget(tokens=10), Budget(tokens=10, account="average")):
        trial = _Trial(tolerance=0.6, references=tuple(noting.references), budget=budget)
        for prefill in calibrator.run(trial, Budget(ratio=1.0)):
            met = False
            for layer, unit in enumerate(prefill.record.units):
                assert not met or unit.kept == unit.before
                attended = prefill.record.visual_tokens[0][: layer + 1]
                through = [other.kept for other in prefill.record.units[: layer + 1]]
                ahead = unit.kept * (6 - layer - 1) * 2
                average = (sum(attended) + sum(through) + ahead) / 12
                met = met or (unit.kept if budget.account == "kept" else average) <= 10
            assert met


@pytest.mark.thorough
def test_tables_of_several_budgets_are_kept_side_by_side(calibrator: OnModel) -> None:
    first = build("fitprune").calibrate(calibrator, Budget(tokens=8))
    both = build("fitprune", **first).calibrate(calibrator, Budget(ratio=0.25))
    assert set(both["tables"]) == {"8", "25%"}
    assert both["tables"]["8"] == first["tables"]["8"]


def test_a_target_that_no_table_meets_is_refused_with_the_floor(calibrator: OnModel) -> None:
    with pytest.raises(BudgetError, match="its floor is") as caught:
        build("fitprune").calibrate(calibrator, Budget(tokens=1, account="average"))
    assert caught.value.hint


def test_a_table_is_taken_for_its_budget_only() -> None:
    pruner = build("fitprune", tables={"16": [20, 0, 12]})
    stops = pruner.plan(SHALLOW, Budget(tokens=16), 48)
    assert [(str(stop.site), stop.keep(48)) for stop in stops] == [("layer:0.mid", 28), ("layer:2.mid", 16)]
    solved = pruner.plan(SHALLOW, Budget(tokens=12), 48)
    assert [str(stop.site) for stop in solved] == [f"layer:{layer}.mid" for layer in range(6)]
    assert solved[-1].keep(48) == 12
    with pytest.raises(IncompatibleError, match="deletes 32 tokens"):
        pruner.plan(SHALLOW, Budget(tokens=16), 32)
    with pytest.raises(IncompatibleError, match="in 3 layers"):
        pruner.plan(dataclasses.replace(SHALLOW, num_layers=2), Budget(tokens=16), 48)
    with pytest.raises(BudgetError, match="by the account `average`"):
        pruner.plan(SHALLOW, Budget(tokens=16, account="average"), 48)


def test_vtw_finds_the_first_layer_that_changes_little(calibrator: OnModel, model: Any) -> None:
    def divergence(layer: int) -> float:
        total = 0.0
        for inputs in calibrator.prompts:
            with torch.no_grad():
                full = model(**inputs).logits[0, -1].double().log_softmax(-1)
            with torch.no_grad(), pruned(model, build("vtw", layer=layer, relative=False), ratio=1.0):
                cut = model(**inputs).logits[0, -1].double().log_softmax(-1)
            total += float((full.exp() * (full - cut)).sum())
        return total / len(calibrator.prompts)

    found = {layer: divergence(layer) for layer in range(1, 6)}
    for eta in sorted(found.values()):
        option = build("vtw", eta=eta * 1.001).calibrate(calibrator, Budget(ratio=0.5))
        (stop,) = build("vtw", **option).plan(calibrator.facts, Budget(ratio=0.5), TOKENS)
        assert stop.site.layer == min(layer for layer, value in found.items() if value <= eta * 1.001)
    with pytest.raises(IncompatibleError, match="the least is") as caught:
        build("vtw", eta=min(found.values()) * 0.5).calibrate(calibrator, Budget(ratio=0.5))
    assert "eta" in caught.value.hint


def test_what_cannot_be_calibrated_says_so(calibrator: OnModel) -> None:
    assert default_host().pruners.get("fitprune").calibrates == ("tables",)
    assert default_host().pruners.get("vtw").calibrates == ("layer",)
    with pytest.raises(IncompatibleError, match="`tome` has no options to calibrate"):
        build("tome").calibrate(calibrator, Budget(ratio=0.5))
