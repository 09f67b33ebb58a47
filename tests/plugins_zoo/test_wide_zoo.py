"""Laws of the wider zoo: exact counts at every stop, batches, degenerate tokens, needs, plans and their accounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tokenprune_zoo
import torch
from tokenprune_zoo.schedule import decoder_layers, depth, encoder_layer, layer_average, solved_stops

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tests.plugins_zoo.test_every_pruner import OPTIONS as OTHERS
from tests.plugins_zoo.test_every_pruner import all_tokens, assert_legal, assert_same
from tests.plugins_zoo.test_video_methods import OPTIONS as VIDEO
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError, UndeclaredNeedError
from tokenprune.plugins import Host
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, Stop
from tokenprune.registry import PrunerSpec
from tokenprune.testing import RecordedView, Recording, random_recording

DEEP = ModelFacts("recorded", num_layers=32, encoder_layers=24, has_cls=True, encoder_read_layer=22)
SHALLOW = ModelFacts("recorded", num_layers=6, encoder_layers=5, has_cls=True, encoder_read_layer=3)
#: Options to try; with those in the second table counts do not follow the budget.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "fastervlm": [],
    "vispruner": [{"important_ratio": 0.0}, {"important_ratio": 1.0}, {"drop_per_round": 1}, {"drop_per_round": 30}],
    "scope": [{"alpha": 0.0}, {"alpha": 2.0}, {"combine": "add"}],
    "trim": [{"negate": False}],
    "holov": [{"num_chunks": 1}, {"num_chunks": 7}, {"num_chunks": 100}, {"alpha": 1.0}],
    "hiprune": [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": 1.0, "published": True},
        {"object_layer": 2, "relative": False},
        {"deep_layer": 3},
    ],
    "gprune": [{"threshold": 0.9}, {"temperature": 1.0}, {"steps": 0}],
    "prumerge": [{"neighbours": 0}, {"neighbours": 1000}, {"layer": 2}],
    "prumerge-plus": [{"neighbours": 3}, {"layer": 2}],
    "pyramiddrop": [{"layers": (4,)}, {"layers": (2, 3), "relative": False}],
    "vscan": [
        {"window": 1},
        {"window": 3},
        {"window": 100},
        {"local_share": 0.0},
        {"local_share": 1.0},
        {"shallow_layer": 2, "layer": 2, "relative": False},
    ],
    "sparsevlm": [
        {"recycle_share": 0.0},
        {"recycle_share": 1.0},
        {"plus": True},
        {"plus": True, "heads": 2, "layers": (2, 3), "relative": False},
        {"layers": (2, 3), "relative": False},
    ],
    "mustdrop": [
        {"protected_share": 0.0},
        {"protected_share": 1.0},
        {"global_threshold": 0.5},
        {"individual_threshold": 0.5},
        {"layers": (1,), "relative": False},
        {"vision": False},
        {"window_threshold": -1.0},
    ],
    "feather": [{"stride": 1}, {"stride": 50}, {"layers": (2, 3), "relative": False}],
    "fitprune": [],
    "topv": [
        {"layer": 1, "relative": False},
        {"space_weight": 0.0},
        {"centre_weight": 1.0},
        {"sigma": 1.0},
        {"epsilon": 1.0},
        {"iterations": 1},
        {"recover_share": 0.0},
        {"recover_share": 1.0},
    ],
    "illava": [
        {"published": True},
        {"layer": 1, "relative": False, "vision_layers": (0, 3)},
        {"vision": False},
        {"vision_layers": (2,)},
    ],
}
DATA_DEPENDENT: dict[str, list[dict[str, Any]]] = {
    "trim": [{"adaptive": True}, {"adaptive": True, "published": True}],
    "holov": [{"published": True}],
    "prumerge": [{"adaptive": True}, {"published": True}],
    "prumerge-plus": [{"adaptive": True}, {"adaptive": True, "published": True}],
    "vscan": [{"published": True}],
    "sparsevlm": [{"kept": (20, 10, 5)}, {"rank_scale": 3.0}, {"rank_scale": 1.0, "rank_bias": 8.0}],
    "mustdrop": [{"published": True}, {"published": True, "global_threshold": 0.02}],
    "feather": [{"published": True}, {"published": True, "ratio": 0.9}],
    "fitprune": [{"tables": {"50%": (12, 0, 15)}}],
    "vtw": [{}, {"layer": 15}, {"layer": 3, "relative": False}, {"eta": 0.1}],
}
#: Options of methods whose later stops make sense after the earlier ones only: see test_encoder_methods.
SEQUENTIAL: dict[str, list[dict[str, Any]]] = {"tome": [{"schedule": "decreasing"}, {"proportional": False}]}


def specs() -> dict[str, PrunerSpec]:
    host = Host()
    assert host.add(tokenprune_zoo, "zoo").outcome == "loaded"
    return {spec.name: spec for spec in host.pruners if spec.name not in {*OTHERS, *VIDEO}}


SPECS = specs()


def variants(table: dict[str, list[dict[str, Any]]], *, default: bool) -> list[Any]:
    return [
        pytest.param(name, options, id=f"{name}-" + ",".join(f"{key}={value}" for key, value in options.items()))
        for name, found in table.items()
        for options in ([{}, *found] if default else found)
    ]


def fixed(stops: Sequence[Stop]) -> list[Stop]:
    """The stops whose counts are a promise."""
    return [stop for stop in stops if not stop.auto]


def at(stop: Stop, pruner: Pruner, recording: Recording, facts: ModelFacts = SHALLOW) -> Decision:
    keep = min(recording.tokens, stop.keep(recording.tokens))
    view = RecordedView(recording, keep, pruner.spec.needs, site=stop.site, facts=facts)
    return pruner.decide(view, stop, {})


def test_every_pruner_of_the_zoo_is_tested_with_every_option() -> None:
    assert set(SPECS) == set(OPTIONS) | set(DATA_DEPENDENT) | set(SEQUENTIAL)
    for name, spec in SPECS.items():
        tables = (OPTIONS, DATA_DEPENDENT, SEQUENTIAL)
        tried = {key for table in tables for options in table.get(name, []) for key in options}
        assert tried == set(spec.defaults), name


@pytest.mark.parametrize(("name", "options"), variants(OPTIONS, default=True))
def test_exact_counts_at_every_stop_and_batch_equals_singles(name: str, options: dict[str, Any]) -> None:
    pruner = SPECS[name].build(options)
    recording = random_recording(seed=3, units=3)
    for keep in (9, 40) if options else (1, 2, 9, 24, 47, 48):
        stops = pruner.plan(SHALLOW, Budget(tokens=keep), 48)
        assert stops[-1].keep(48) == keep
        for stop in fixed(stops):
            decision = at(stop, pruner, recording)
            assert_legal(decision, 3, 48, stop.keep(48))
            assert_same(decision, at(stop, pruner, recording))
            assert_same(at(stop, pruner, recording.unit(1)), Decision((decision.units[1],)))


@pytest.mark.parametrize(("name", "options"), variants(OPTIONS, default=True))
def test_degenerate_tokens_and_short_numbers(name: str, options: dict[str, Any]) -> None:
    pruner = SPECS[name].build(options)
    recording = random_recording(seed=4)
    given = (recording.to(torch.bfloat16), all_tokens(recording, zero=False), all_tokens(recording, zero=True))
    for stop in fixed(pruner.plan(SHALLOW, Budget(tokens=10), 48)):
        for recorded in given:
            assert_legal(at(stop, pruner, recorded), 2, 48, stop.keep(48))


@pytest.mark.parametrize(("name", "options"), variants(DATA_DEPENDENT, default=False))
def test_counts_that_follow_from_the_data(name: str, options: dict[str, Any]) -> None:
    pruner = SPECS[name].build(options)
    for recording in (random_recording(seed=6, units=3), all_tokens(random_recording(seed=6, units=3), zero=False)):
        for stop in pruner.plan(SHALLOW, Budget(ratio=0.5), 48):
            decision = at(stop, pruner, recording)
            assert len(decision.units) == 3
            for index, kept in enumerate(decision.units):
                anchors = kept.anchors.tolist()
                assert len(anchors) == len(set(anchors)) <= 48
                assert set(anchors) <= set(range(48))
                assert bool(anchors) == (name != "vtw")
                if kept.merge is not None:
                    assert kept.merge.shape == (len(anchors), 48)
                    assert torch.isfinite(kept.merge).all()
                (alone,) = at(stop, pruner, recording.unit(index)).units
                assert alone.anchors.tolist() == anchors


@pytest.mark.parametrize("name", sorted(SPECS))
def test_keep_all_changes_nothing(name: str) -> None:
    pruner = SPECS[name].build()
    recording = random_recording(seed=1)
    for stop in pruner.plan(SHALLOW, Budget(ratio=1.0), 48):
        for kept in at(stop, pruner, recording).units:
            assert kept.anchors.tolist() == list(range(48))
            assert kept.merge is None


@pytest.mark.parametrize("name", sorted(SPECS))
def test_only_declared_needs_are_asked_for(name: str) -> None:
    """Each need taken away makes the pruner stop at one of its views, so none is declared in vain."""
    spec = SPECS[name]
    recording = random_recording(seed=0)
    options: dict[str, Any] = {"plus": True} if name == "sparsevlm" else {}
    pruner = spec.build(options)
    stops = pruner.plan(SHALLOW, Budget(tokens=40), 48)

    def run(needs: set[str]) -> None:
        for stop in stops:
            pruner.decide(RecordedView(recording, 40, needs, site=stop.site, facts=SHALLOW), stop, {})

    run(set(spec.needs))
    for need in spec.needs:
        with pytest.raises(UndeclaredNeedError, match=f"`{need}`"):
            run(set(spec.needs) - {need})


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_pruner_takes_mass_correction(name: str) -> None:
    pruner, plain = SPECS[name].build({"mass_correction": True}), SPECS[name].build()
    recording = random_recording(seed=5)
    stops = pruner.plan(SHALLOW, Budget(tokens=12), 48)
    assert stops == plain.plan(SHALLOW, Budget(tokens=12), 48)
    assert pruner.positions == plain.positions
    for stop in fixed(stops):
        for kept, reference in zip(at(stop, pruner, recording).units, at(stop, plain, recording).units, strict=True):
            assert kept.anchors.tolist() == reference.anchors.tolist()
            if len(kept.anchors):
                assert kept.log_weights is not None
                assert float(kept.log_weights.amax()) > 0.0
                assert torch.isfinite(kept.log_weights).all()


@pytest.mark.parametrize("name", sorted(set(SPECS) - {"vtw", *SEQUENTIAL}))
@pytest.mark.parametrize("facts", [DEEP, SHALLOW], ids=["deep", "shallow"])
@pytest.mark.parametrize("tokens", [576, 256])
def test_plans_meet_the_budget_by_both_accounts(name: str, facts: ModelFacts, tokens: int) -> None:
    pruner = SPECS[name].build()
    for ratio in (0.5, 0.25, 0.111, 0.056):
        stops = pruner.plan(facts, Budget(ratio=ratio), tokens)
        assert stops[-1].keep(tokens) == Budget(ratio=ratio).count(tokens)
        assert {stop.site.kind for stop in stops} <= set(SPECS[name].sites)
        counts = [stop.keep(tokens) for stop in stops]
        assert counts == sorted(counts, reverse=True)
    stops = fixed(pruner.plan(facts, Budget(ratio=0.6, account="average"), tokens))
    cuts = [depth(stop.site) for stop in stops]
    found = layer_average(cuts, [stop.keep(tokens) for stop in stops], tokens, facts.num_layers)
    assert found == pytest.approx(0.6 * tokens, abs=0.5)


@pytest.mark.parametrize("name", sorted(set(SPECS) & {"pyramiddrop", "sparsevlm", "mustdrop", "feather", "fitprune"}))
def test_an_average_below_the_floor_is_refused_with_the_floor(name: str) -> None:
    with pytest.raises(BudgetError, match=r"cannot go under [0-9.]+ of 576 tokens") as caught:
        SPECS[name].build().plan(SHALLOW, Budget(tokens=2, account="average"), 576)
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
    spec = SPECS[name]
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
    return [stop.keep(576) for stop in SPECS[name].build(options).plan(DEEP, budget, 576)]


def average(name: str, budget: Budget, options: dict[str, Any] | None = None) -> float:
    stops = SPECS[name].build(options).plan(DEEP, budget, 576)
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
    spec = SPECS["vtw"]
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vispruner", {"important_ratio": 1.5}),
        ("vispruner", {"drop_per_round": 0}),
        ("scope", {"alpha": -1.0}),
        ("scope", {"combine": "max"}),
        ("holov", {"num_chunks": 0}),
        ("hiprune", {"alpha": 2.0}),
        ("gprune", {"threshold": 0.0}),
        ("gprune", {"temperature": 0.0}),
        ("prumerge", {"neighbours": -1}),
        ("prumerge-plus", {"neighbours": -1}),
        ("vscan", {"window": 0}),
        ("vscan", {"local_share": 2.0}),
        ("sparsevlm", {"kept": (3,)}),
        ("sparsevlm", {"recycle_share": 2.0}),
        ("sparsevlm", {"heads": 0}),
        ("mustdrop", {"global_threshold": 0.0}),
        ("feather", {"layers": (8,)}),
        ("feather", {"ratio": 0.0}),
        ("fitprune", {"tables": {"64": (-1,)}}),
        ("fitprune", {"tables": {"64": "all"}}),
        ("tome", {"schedule": "cosine"}),
        ("mustdrop", {"window_threshold": 2.0}),
        ("vtw", {"eta": 0.0}),
        ("topv", {"epsilon": 0.0}),
        ("topv", {"recover_share": 2.0}),
    ],
)
def test_bad_options_are_refused_when_the_pruner_is_built(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SPECS[name].build(options)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_specs_say_where_they_come_from(name: str) -> None:
    spec = SPECS[name]
    assert spec.source.title
    assert spec.formula
    assert spec.summary
    assert len(spec.fidelity) > 80
    for option in spec.defaults:
        assert f"{option}:" in "".join(base.__doc__ or "" for base in spec.load().__mro__)


def test_raters_are_chosen_once_and_follow_their_unit() -> None:
    pruner = SPECS["sparsevlm"].build()
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


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava(layers=6)


@pytest.mark.parametrize("name", sorted(set(SPECS) - {"trim"}))  # it needs a joint space: see the shipped model
def test_a_ragged_batch_on_a_model(name: str, model: Any) -> None:
    inputs = batch([prompt(1), prompt(2, text=9), prompt(3, images=2)])
    pruner = SPECS[name].build()
    with torch.no_grad(), pruned(model, pruner, 0.5) as session:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    record = session.records[0]
    plan = fixed(pruner.plan(SHALLOW, Budget(ratio=0.5), TOKENS))
    left = 0 if name == "vtw" else 8
    assert record.final() == (left, left, 2 * left)
    expected = layer_average([depth(stop.site) for stop in plan], [stop.keep(TOKENS) for stop in plan], TOKENS, 6)
    assert record.layer_average() == pytest.approx((expected, expected, 2 * expected))
