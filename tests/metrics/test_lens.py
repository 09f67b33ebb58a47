from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.metrics.by_hand import VISUAL, B, D, G, captured, cut, output_by_hand
from tests.sweep.fixtures import Workshop
from tests.sweep.tiny import TOKENS
from tokenprune import Budget
from tokenprune.checkpoints import load_model
from tokenprune.engine import capture_prefill, pruned
from tokenprune.evaluation.batches import prepare
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.metrics.lens import Cut, KeptTokens, kept_tokens, lens_errors
from tokenprune.sweep.plan.cells import plan_cells


@pytest.mark.parametrize("weights", [(), (0.7, 0.0)])
def test_output_error_is_the_definition(weights: tuple[float, ...]) -> None:
    layer = captured(0)
    found = lens_errors([layer], [cut(1, 4, weights=weights), cut(0, 2)])
    squares = []
    for sample, kept, extra in ((0, [1, 4], dict(zip([1, 4], weights, strict=False))), (1, [0, 2], {})):
        whole = output_by_hand(layer, sample, list(range(6)), {})
        pruned_output = output_by_hand(layer, sample, kept, extra)
        squares.append(float(((whole - pruned_output) ** 2).sum() / (whole**2).sum()))
    assert found["output_error"] == pytest.approx(math.sqrt(sum(squares) / 2), rel=1e-4)
    assert found["samples"] == 2


def test_dual_error_is_the_definition() -> None:
    """||W - W_S|| / ||W|| with the exponential kernel between centred keys, per head."""
    layer = captured(0)
    kept = {1, 4}
    relative = []
    for group in range(G):
        keys = layer.keys_nope[0, group, list(VISUAL)].double()
        keys = keys - keys.mean(0)
        values = layer.values[0, group, list(VISUAL)].double()
        gram = torch.exp(keys @ keys.T / math.sqrt(D)) * (values @ values.T)
        dropped = torch.tensor([index not in kept for index in range(6)], dtype=torch.float64)
        relative.append(float(dropped @ gram @ dropped / gram.sum()))
    found = lens_errors([layer], [cut(1, 4), None])
    assert found["dual_error"] == pytest.approx(math.sqrt(sum(relative) / G), rel=1e-4)
    assert found["samples"] == 1


def test_layers_before_the_cut_count_zero() -> None:
    layers = [captured(0), captured(1), captured(2)]
    found = lens_errors(layers, [cut(1, layer=2), cut(1, layer=2)])
    assert found["output_error_per_layer"][:2] == [0.0, 0.0]
    assert found["output_error_per_layer"][2] > 0
    assert found["output_error"] == pytest.approx(found["output_error_per_layer"][2] / 3)


def test_a_cut_in_the_middle_of_a_layer_leaves_its_attention_alone() -> None:
    middle = KeptTokens((Cut(0, "layer:1.mid", 1, len(VISUAL), (1,)),))
    found = lens_errors([captured(0), captured(1), captured(2)], [middle, middle])
    assert found["output_error_per_layer"][:2] == [0.0, 0.0]
    assert found["output_error_per_layer"][2] > 0


def test_keeping_everything_is_no_error_and_less_is_never_better_by_the_dual_form() -> None:
    layer = captured(0)
    assert lens_errors([layer], [cut(*range(6)), cut(*range(6))])["output_error"] == 0.0
    assert lens_errors([layer], [cut(), cut()])["dual_error"] == pytest.approx(1.0, abs=1e-6)


def test_several_images_follow_each_other() -> None:
    layer = replace(captured(0), visual=(torch.tensor(VISUAL),) * B)
    two = KeptTokens((Cut(0, "input", 0, 2, (0,)), Cut(1, "input", 0, 4, (3, 1))))
    one = cut(0, 3, 5)
    assert lens_errors([layer], [two, None]) == lens_errors([layer], [one, None])


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([None, None], "no sample"),
        ([cut(1, merged=True), cut(1)], "merged"),
        ([KeptTokens((Cut(0, "pixels", 0, 6, (1,)),)), cut(1)], "`pixels` are re-encoded"),
        ([cut(1), KeptTokens((Cut(0, "tower:1", 0, 6, (1,)),))], "`tower:1` are re-encoded"),
        ([KeptTokens((Cut(0, "decode:1", 1, 6, (1,)),)), cut(1)], "leave the prefill"),
    ],
)
def test_what_cannot_be_measured_is_said(kept: list[Any], reason: str) -> None:
    found = lens_errors([captured(0)], kept)
    assert reason in found["reason"]
    assert (found["output_error"], found["dual_error"]) == (None, None)


def test_on_a_real_capture(workshop: Workshop) -> None:
    """The pruner's own record and the capture speak of the same tokens."""
    loaded = load_model(str(workshop.model), host=workshop.host)
    cell = plan_cells(workshop.config(), workshop.host)[0]
    task = ModelCache(workshop.host, "cpu").task(cell)
    batch = prepare(loaded, task, [0, 1])  # questions of different lengths: one is padded
    layers = capture_prefill(loaded.model, batch.inputs, range(loaded.facts.num_layers))
    errors = []
    for tokens in (TOKENS, TOKENS // 2, 1):
        with pruned(loaded.model, "grid", Budget(tokens=tokens)) as session, torch.no_grad():
            loaded.model(**batch.inputs)
        kept = [kept_tokens(session.last, sample) for sample in (0, 1)]
        errors.append(lens_errors(layers, kept)["output_error"])
        alone = [capture_prefill(loaded.model, prepare(loaded, task, [index]).inputs, range(4)) for index in (0, 1)]
        singles = [lens_errors(alone[index], [kept[index]])["output_error_per_layer"] for index in (0, 1)]
        both = [math.sqrt((a**2 + b**2) / 2) for a, b in zip(*singles, strict=True)]
        assert lens_errors(layers, kept)["output_error_per_layer"] == pytest.approx(both, rel=1e-3, abs=1e-6)
    assert errors[0] == 0.0
    assert 0 < errors[1] < errors[2]
