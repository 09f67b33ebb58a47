"""Where methods with several cuts make them, and how many tokens they leave at each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from recorded_stops import (
    DEEP,
    FACTS,
    SHALLOW,
    build,
)
from tokenprune_zoo.schedule import decoder_layers, depth, encoder_layer, layer_average, solved_stops

from tokenprune import Budget
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError
from tokenprune.plugins import default_host
from tokenprune.pruner import Site, Stop
from tokenprune.testing import RecordedView, Recording, random_recording


@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm", "mustdrop", "feather", "fitprune"])
def test_an_average_below_the_floor_is_refused_with_the_floor(name: str) -> None:
    with pytest.raises(BudgetError, match=r"cannot go under [0-9.]+ of 576 tokens") as caught:
        build(name).plan(SHALLOW, Budget(tokens=2, account="average"), 576)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("pyramiddrop", "layers"),
        ("sparsevlm", "layers"),
        ("mustdrop", "layers"),
        ("feather", "layers"),
        ("vscan", "layer"),
        ("illava", "layer"),
    ],
)
def test_a_shallower_model_is_refused_by_absolute_layers(name: str, option: str) -> None:
    spec = default_host().pruners.get(name)
    with pytest.raises(IncompatibleError, match="the model has 6 layers") as caught:
        spec.build({"relative": False}).plan(SHALLOW, Budget(ratio=0.5), 256)
    assert f"`{option}`" in caught.value.hint
    published = spec.defaults[option]
    deep = spec.build({"relative": False}).plan(DEEP, Budget(ratio=0.5), 256)
    cuts = tuple(stop.site.layer for stop in deep if stop.site.kind == "layer")
    assert cuts == (published if isinstance(published, tuple) else (published,))
    assert deep == spec.build().plan(DEEP, Budget(ratio=0.5), 256)  # relative to 32 layers nothing changes


def test_scaled_layers_stay_apart_and_encoder_layers_scale_with_the_tower() -> None:
    assert decoder_layers("x", "layers", (8, 16, 24), SHALLOW, True) == (2, 3, 5)
    assert decoder_layers("x", "layers", (3, 7, 11, 15), SHALLOW, True) == (1, 2, 3, 4)
    assert decoder_layers("x", "layers", (1, 2, 3), SHALLOW, True) == (1, 2, 3)
    for layers in ((), (0, 3), (5, 5), (6, 2)):
        with pytest.raises(ConfigError, match="growing layer numbers"):
            decoder_layers("x", "layers", layers, DEEP, False)
    assert encoder_layer(8, DEEP, True) == 8
    assert encoder_layer(8, SHALLOW, True) == 2
    with pytest.raises(IncompatibleError, match="encoder has 5 layers"):
        encoder_layer(8, SHALLOW, False)


def counts(name: str, budget: Budget, options: dict[str, Any] | None = None) -> Sequence[int]:
    return [stop.keep(576) for stop in build(name, options).plan(DEEP, budget, 576)]


def average(name: str, budget: Budget, options: dict[str, Any] | None = None) -> float:
    stops = build(name, options).plan(DEEP, budget, 576)
    return layer_average([depth(stop.site) for stop in stops], [stop.keep(576) for stop in stops], 576, 32)


def test_published_counts_and_averages() -> None:
    assert counts("pyramiddrop", Budget(tokens=72)) == [288, 144, 72]
    assert average("pyramiddrop", Budget(tokens=72)) == 270.0
    assert counts("pyramiddrop", Budget(tokens=270, account="average")) == [288, 144, 72]
    for tokens, first, last in ((64, 96, 32), (128, 192, 64), (192, 288, 96)):
        assert counts("vscan", Budget(tokens=tokens, account="average")) == [first, last]
    for kept, sizes, true_average in (
        ((300, 200, 110), [309, 204, 113], 206.5),
        ((303, 110, 36), [312, 117, 39], 145.4),
        ((66, 30, 17), [82, 32, 18], 82.3),
    ):
        assert counts("sparsevlm", Budget(tokens=1), {"kept": kept}) == sizes
        assert average("sparsevlm", Budget(tokens=1), {"kept": kept}) == pytest.approx(true_average, abs=0.1)
    assert counts("feather", Budget(tokens=576)) == [576, 576]


def test_withdrawal_takes_the_budget_as_an_average() -> None:
    spec = default_host().pruners.get("vtw")
    for account in ("kept", "average"):
        (stop,) = spec.build().plan(DEEP, Budget(ratio=0.25, account=account), 576)
        assert stop == Stop(Site("layer", 8), Budget(tokens=1), drop_all=True)
    assert spec.build().plan(DEEP, Budget(ratio=1.0), 576) == ()
    (fixed,) = spec.build({"layer": 15}).plan(DEEP, Budget(ratio=0.25), 576)
    assert fixed.site == Site("layer", 15)
    assert fixed.keep(576) == 0
    with pytest.raises(BudgetError, match=r"its floor is 96.0 \(16.7%\)"):
        spec.build().plan(SHALLOW, Budget(ratio=0.05), 576)


def test_a_solver_without_room_says_so() -> None:
    sites = [Site("layer", 16)]
    with pytest.raises(BudgetError, match="cannot go under 288"):
        solved_stops("x", sites, lambda t: [t * 576], DEEP, Budget(tokens=200, account="average"), 576)


def test_raters_are_chosen_once_and_follow_their_unit() -> None:
    pruner = build("sparsevlm")
    recording = random_recording(seed=2, units=3)
    stop = Stop(Site("layer", 1), Budget(tokens=20))
    state: dict[str, Any] = {}
    view = RecordedView(recording, 20, pruner.spec.needs, site=stop.site, facts=SHALLOW)
    first = pruner.raters(view, state)
    swapped = Recording(
        tokens=48,
        **{
            name: getattr(recording, name).flip(0)
            for name in ("hidden", "projected", "text_embeddings", "keys", "keys_nope", "values")
        },
    )
    again = RecordedView(recording, 20, pruner.spec.needs, site=stop.site, facts=SHALLOW)
    assert torch.equal(pruner.raters(again, state), first)
    known = dict(state["raters"])
    other = RecordedView(swapped, 20, pruner.spec.needs, site=stop.site, facts=SHALLOW)
    assert torch.equal(pruner.raters(other, {}), first.flip(0))
    assert state["raters"] == known
    chosen = ~first[0]  # another choice than the one that this view would make
    seen = {view.fingerprints()[0]: chosen}
    beside = pruner.raters(view, {"raters": seen})
    assert torch.equal(beside, torch.cat((chosen[None], first[1:])))  # beside units that are seen first


@pytest.mark.parametrize("name", ["prunevid", "dycoke", "holitom"])
def test_a_shallower_model_for_videos_is_refused_by_absolute_layers(name: str) -> None:
    layer = default_host().pruners.get(name).defaults["layer"]
    shallow = dataclasses.replace(FACTS, num_layers=layer)
    with pytest.raises(IncompatibleError, match=f"the model has {layer} layers"):
        build(name, {"relative": False}).plan(shallow, Budget(ratio=0.3), 96)
    deep = dataclasses.replace(FACTS, num_layers=32)
    assert build(name).plan(deep, Budget(ratio=0.3), 96)[-1].site.layer == layer
