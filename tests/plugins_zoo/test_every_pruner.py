"""Laws that the fixed-count pruners of the plugins keep, at their defaults and at every value of every option."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import tokenprune_iwp
import tokenprune_zoo
import torch

from tokenprune import Budget
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError, UndeclaredNeedError
from tokenprune.plugins import Host
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, Stop
from tokenprune.registry import PrunerSpec
from tokenprune.testing import RecordedView, Recording, random_recording

FACTS = ModelFacts("recorded", num_layers=6, encoder_layers=4, has_cls=True, encoder_read_layer=3)
MMR = [
    {"trade_off": 0.0},
    {"trade_off": 1.0},
    {"magnitude_scale": "minmax"},
    {"overlap": "mean"},
    {"schedule": "exact"},
    {"schedule": "fixed"},
    {"schedule": "shrinking"},
    {"suppression": 0.0},
    {"suppression": 0.7},
    {"first_chunk": 8},
    {"growth": 1.0},
    {"tau": 0.0},
    {"tau": 3.0},
    {"mass_correction": True},
    {"mass_correction": False},
    {"mass_correction": True, "mass_cap": 2.0},
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "iwp": [
        *MMR,
        {"rows": "last"},
        {"rows": "visual"},
        {"row_pooling": "mean"},
        {"row_pooling": "max"},
        {"head_pooling": "max"},
        {"head_pooling": "logmeanexp"},
        {"normalise": False},
        {"rope_in_magnitude": True},
        {"rope_in_duplication": False},
    ],
    "iwp-exact": [*MMR, {"rows": "last"}, {"covariance_rows": "text"}, {"covariance_rows": "visual"}],
    "oracle": [{"rows": "last"}, {"sweeps": 0}, {"sweeps": 2}],
    "fastv": [{"layer": 1}],
    "divprune": [],
    "visionzip": [{"contextual_share": 0.0}, {"contextual_share": 0.9}, {"contextual": 3}],
    "dart": [{"pivot_image": 1, "pivot_text": 0}, {"pivot_image": 20}, {"pivot_text": 50}, {"published": True}],
    "cdpruner": [{"negate": False}, {"theta": 0.5}],
}


def specs() -> dict[str, PrunerSpec]:
    host = Host()
    for plugin in (tokenprune_iwp, tokenprune_zoo):
        assert host.add(plugin, plugin.__name__).outcome == "loaded"
    return {spec.name: spec for spec in host.pruners if spec.name in OPTIONS}


SPECS = specs()
VARIANTS = [
    pytest.param(name, options, id=f"{name}-" + ",".join(f"{key}={value}" for key, value in options.items()))
    for name, variants in OPTIONS.items()
    for options in ({}, *variants)
]


def decide(pruner: Pruner, recording: Recording, keep: int) -> Decision:
    view = RecordedView.for_pruner(recording, pruner, keep)
    return pruner.decide(view, Stop(view.site, Budget(tokens=keep)), {})


def assert_legal(decision: Decision, units: int, tokens: int, keep: int) -> None:
    assert len(decision.units) == units
    for kept in decision.units:
        anchors = kept.anchors.tolist()
        assert len(anchors) == len(set(anchors)) == keep
        assert kept.anchors.dtype == torch.int64
        assert set(anchors) <= set(range(tokens))
        if kept.merge is not None:
            assert kept.merge.shape == (keep, tokens)
            torch.testing.assert_close(kept.merge.sum(dim=-1), torch.ones(keep))
            assert (kept.merge[torch.arange(keep), kept.anchors] > 0).all()
        if kept.log_weights is not None:
            assert kept.log_weights.shape == (keep,)
            assert torch.isfinite(kept.log_weights).all()
            assert (kept.log_weights >= 0).all()
        if kept.labels is not None:
            assert len(kept.labels) == keep


def assert_same(first: Decision, second: Decision) -> None:
    assert len(first.units) == len(second.units)
    for one, other in zip(first.units, second.units, strict=True):
        assert one.anchors.tolist() == other.anchors.tolist()
        for left, right in ((one.merge, other.merge), (one.log_weights, other.log_weights)):
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                torch.testing.assert_close(left, right)


def test_the_table_of_options_covers_every_pruner_and_every_option() -> None:
    assert set(OPTIONS) == set(SPECS)
    quiet = {"iwp": {"layer"}, "iwp-exact": {"layer"}, "oracle": {"layer"}, "dart": {"layer", "image_start"}}
    published = {"visionzip": {"published"}, "cdpruner": {"published"}}  # batch-wide or K-1 rows: see test_golden
    for name, spec in SPECS.items():
        tried = {key for variant in OPTIONS[name] for key in variant}
        assert tried | quiet.get(name, set()) | published.get(name, set()) == set(spec.defaults), name


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_exact_count_distinct_rows_and_batch_equals_singles(name: str, options: dict[str, Any]) -> None:
    pruner = SPECS[name].build(options)
    recording = random_recording(seed=3, units=3)
    for keep in (9, 40) if options else (1, 2, 9, 24, 47, 48):
        decision = decide(pruner, recording, keep)
        assert_legal(decision, 3, 48, keep)
        assert_same(decision, decide(pruner, recording, keep))
        alone = decide(pruner, recording.unit(1), keep)
        assert_same(alone, Decision((decision.units[1],)))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_degenerate_tokens_and_short_numbers(name: str, options: dict[str, Any]) -> None:
    pruner = SPECS[name].build(options)
    recording = random_recording(seed=4)
    half = recording.to(torch.bfloat16)
    for given in (half, all_tokens(recording, zero=False), all_tokens(recording, zero=True)):
        for keep in (10,) if options else (1, 10, 48):
            assert_legal(decide(pruner, given, keep), 2, 48, keep)


def all_tokens(recording: Recording, *, zero: bool) -> Recording:
    """Every visual token equal to the first one, or zero."""
    changed: dict[str, Any] = {}
    for entry in dataclasses.fields(recording):
        value = getattr(recording, entry.name)
        if isinstance(value, torch.Tensor) and value.dim() > 2 and value.shape[-2] == recording.tokens:
            same = value[..., :1, :].expand_as(value)
            changed[entry.name] = torch.zeros_like(value) if zero else same.contiguous()
    return dataclasses.replace(recording, **changed)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_only_declared_needs_are_asked_for(name: str) -> None:
    """Each need taken away makes the pruner stop at the view, so none is declared in vain."""
    spec = SPECS[name]
    pruner = spec.build()
    recording = random_recording(seed=0)
    assert spec.needs
    for need in spec.needs:
        view = RecordedView(recording, 9, set(spec.needs) - {need})
        with pytest.raises(UndeclaredNeedError, match=f"`{need}`"):
            pruner.decide(view, Stop(view.site, Budget(tokens=9)), {})


@pytest.mark.parametrize("name", sorted(SPECS))
def test_plans(name: str) -> None:
    pruner = SPECS[name].build()
    (stop,) = pruner.plan(FACTS, Budget(ratio=0.25), 256)
    assert stop.keep(256) == 64
    assert stop.site.kind in SPECS[name].sites
    if stop.site.kind != "layer":
        return
    assert stop.site == Site("layer", 2)
    (average,) = pruner.plan(FACTS, Budget(ratio=0.5, account="average"), 256)
    assert average.keep(256) == 64  # (2 x 256 + 4 x 64) / 6 = 128
    with pytest.raises(BudgetError, match="its floor is"):
        pruner.plan(FACTS, Budget(ratio=0.1, account="average"), 256)
    with pytest.raises(IncompatibleError, match="has 6 layers"):
        SPECS[name].build({"layer": 6}).plan(FACTS, Budget(ratio=0.25), 256)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_pruner_takes_mass_correction(name: str) -> None:
    pruner = SPECS[name].build({"mass_correction": True})
    decision = decide(pruner, random_recording(seed=5), 12)
    assert_legal(decision, 2, 48, 12)
    plain = decide(SPECS[name].build(), random_recording(seed=5), 12)
    for kept, reference in zip(decision.units, plain.units, strict=True):
        assert kept.anchors.tolist() == reference.anchors.tolist()
        assert kept.log_weights is not None
        assert float(kept.log_weights.exp().sum()) == pytest.approx(48, rel=1e-4)  # every token is spoken for
    assert pruner.plan(FACTS, Budget(ratio=0.5), 48) == SPECS[name].build().plan(FACTS, Budget(ratio=0.5), 48)
    assert pruner.positions == SPECS[name].build().positions


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iwp", {"trade_off": 2.0}),
        ("iwp", {"schedule": "random"}),
        ("iwp", {"rows": "words"}),
        ("iwp", {"row_pooling": "sum"}),
        ("iwp", {"head_pooling": "sum"}),
        ("iwp", {"magnitude_scale": "log"}),
        ("iwp", {"overlap": "min"}),
        ("iwp", {"layer": -1}),
        ("iwp", {"first_chunk": 0}),
        ("iwp", {"growth": 0.0}),
        ("iwp", {"suppression": 1.5}),
        ("iwp", {"tau": -1.0}),
        ("iwp", {"mass_cap": 0.5}),
        ("iwp-exact", {"covariance_rows": "none"}),
        ("iwp-exact", {"rows": "visual"}),
        ("oracle", {"sweeps": -1}),
        ("oracle", {"rows": "visual"}),
        ("fastv", {"layer": 0}),
        ("visionzip", {"contextual_share": 1.0}),
        ("dart", {"pivot_image": 0}),
        ("cdpruner", {"theta": 1.0}),
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
    assert len(spec.fidelity) > 80
    assert spec.summary
    for option in spec.defaults:
        assert f"{option}:" in (spec.load().__doc__ or "") + "".join(base.__doc__ or "" for base in spec.load().__mro__)


def test_listing_the_plugins_imports_no_torch() -> None:
    code = "import sys, tokenprune_iwp, tokenprune_zoo; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
