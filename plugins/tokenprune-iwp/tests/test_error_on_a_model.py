"""The error that a choice of `iwp-exact` predicts is what the pruned model really makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tokenprune_iwp import IwpExact, Oracle
from torch import Tensor

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tokenprune import dual, get_pruner
from tokenprune.engine import pruned
from tokenprune.pruner import Decision, State, Stop, View


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


@pytest.mark.parametrize("mass_correction", [False, True])
@pytest.mark.parametrize("name", ["iwp", "iwp-exact", "oracle"])
def test_a_ragged_batch(name: str, mass_correction: bool, model: Any) -> None:
    inputs = batch([prompt(1), prompt(2, text=9), prompt(3, images=2)])
    with torch.no_grad(), pruned(model, name, 0.25, mass_correction=mass_correction) as session:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    record = session.records[0]
    assert record.final() == (4, 4, 8)
    for unit in record.units:
        assert unit.before == TOKENS
        assert unit.kept == len(set(unit.indices)) == 4
        if mass_correction:
            assert sum(torch.tensor(unit.log_weights).exp().tolist()) == pytest.approx(TOKENS, rel=1e-4)


@dataclass(frozen=True)
class Recording(IwpExact):
    """Chooses like `iwp-exact` and keeps the predicted error of its choice."""

    predicted: list[Tensor] = field(default_factory=list)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        decision = super().decide(view, stop, state)
        attention, mask = view.attention("text")
        output, _ = view.attention_output("text")
        kept = torch.zeros(view.units, view.tokens, dtype=torch.bool)
        weights = torch.zeros(view.units, view.tokens)
        for unit, choice in enumerate(decision.units):
            kept[unit, choice.anchors] = True
            if choice.log_weights is not None:
                weights[unit, choice.anchors] = choice.log_weights
        found = dual.subset_error(attention, view.values(), output, kept, rows=mask, log_weights=weights)
        self.predicted.append(torch.stack((found.error, found.size)))
        return decision


def heads_output(model: Any, layer: int, inputs: dict[str, Tensor], text: int) -> Tensor:
    """What the heads of a layer give for the last `text` rows, before the output projection, (rows, H, d)."""
    seen: list[Tensor] = []
    projection = model.model.language_model.layers[layer].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return seen[0][0, -text:].view(text, 4, 8)


@pytest.mark.parametrize("mass_correction", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 4])
def test_the_predicted_error_is_the_error_that_the_pruned_model_makes(
    seed: int, mass_correction: bool, model: Any
) -> None:
    ids, pixels = prompt(seed)
    inputs = batch([(ids, pixels)])
    text = len(ids) - 3 - TOKENS
    full = heads_output(model, 2, inputs, text)
    pruner = Recording(mass_correction=mass_correction, predicted=[])
    with pruned(model, pruner, 0.25):
        cut = heads_output(model, 2, inputs, text)
    ((error, size),) = pruner.predicted
    torch.testing.assert_close(error[0].float(), (full - cut).square().sum(-1).mean(dim=0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(size[0].float(), full.square().sum(-1).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_the_oracle_makes_the_smallest_error_of_all_pruners_at_its_cut(model: Any) -> None:
    ids, pixels = prompt(7)
    inputs = batch([(ids, pixels)])
    text = len(ids) - 3 - TOKENS
    full = heads_output(model, 2, inputs, text)

    def error(pruner: Any) -> float:
        with pruned(model, pruner, 0.25):
            return float((full - heads_output(model, 2, inputs, text)).square().sum())

    best = error(Oracle(sweeps=3))
    for name in ("iwp", "fastv", "dart"):
        assert best < error(get_pruner(name))
