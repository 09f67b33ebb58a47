"""Every method of the zoo on a small model: the counts that it plans are the counts that the model runs with."""

from __future__ import annotations

from typing import Any

import pytest
import tokenprune_zoo
import torch
from recorded_stops import RANDOM_LLAVA, build

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.testing.conformance.plan_checks import layer_average

SPECS = {method.spec.name: method.spec for method in tokenprune_zoo.METHODS}
#: Without those that need a joint space: they run on the shipped model (`tests/engine/test_shipped_model.py`).
NAMES = [name for name, spec in SPECS.items() if "joint" not in spec.needs]
VIDEO = [name for name, spec in SPECS.items() if any(word in spec.axes.groups for word in ("frame", "video"))]
SAMPLES = [prompt(1), prompt(2, text=9), prompt(3, images=2)]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava(layers=6)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_a_ragged_batch(name: str, ratio: float, model: Any) -> None:
    pruner = build(name)
    with torch.no_grad(), pruned(model, pruner, ratio) as session:
        model.generate(**batch(SAMPLES), max_new_tokens=3, do_sample=False)
    record = session.records[0]
    stops = [
        stop
        for stop in pruner.plan(RANDOM_LLAVA, Budget(ratio=ratio), TOKENS)
        if not stop.auto and stop.site.kind != "decode"
    ]
    left = stops[-1].keep(TOKENS)
    assert record.final() == (left, left, 2 * left)
    expected = layer_average(stops, TOKENS, 6)
    assert record.layer_average() == pytest.approx((expected, expected, 2 * expected))
    for unit in record.units:
        assert unit.kept == len(set(unit.indices))


@pytest.mark.parametrize("name", ["fastv", "divprune", "visionzip", "dart"])  # one cut, rows kept as they are or merged
def test_mass_correction_on_a_model(name: str, model: Any) -> None:
    with torch.no_grad(), pruned(model, name, 0.25, mass_correction=True) as session:
        model.generate(**batch(SAMPLES), max_new_tokens=3, do_sample=False)
    assert session.records[0].final() == (4, 4, 8)
    for unit in session.records[0].units:
        assert sum(torch.tensor(unit.log_weights).exp().tolist()) == pytest.approx(TOKENS, rel=1e-4)


@pytest.mark.parametrize("name", VIDEO)
def test_videos(name: str, model: Any) -> None:
    inputs = batch([prompt(1, images=4), prompt(2, images=4, text=9)])
    with torch.no_grad(), pruned(model, name, 0.25, frames=True) as session:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    record = session.records[0]
    assert record.final() == (16, 16)
    if name == "prunevid":  # caches of the layers before the second cut are cut, too
        assert record.kv_tokens() == (16.0, 16.0)
        assert record.entering() == (40, 40)
    if name == "dycoke":
        assert all(sum(step.visible) < sum(step.cached) for step in session.steps[:1])


def test_prunevid_reaches_back_for_pictures_too(model: Any) -> None:
    with torch.no_grad(), pruned(model, "prunevid", 0.25) as session:
        model.generate(**batch(SAMPLES), max_new_tokens=3, do_sample=False)
    record = session.records[0]
    assert record.kv_tokens() == (4.0, 4.0, 8.0)
    assert record.entering() == (10, 10, 20)
