"""The pruners of this distribution keep every law of the conformance kit, at their defaults and under each variant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import tokenprune_iwp

from tokenprune import Budget, get_pruner
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError
from tokenprune.pruner import ModelFacts, Site
from tokenprune.testing import conformance
from tokenprune.testing.conformance import Check, PrunerUnderTest
from tokenprune.testing.conformance.plan_run import pictures, run_plan

SPECS = {
    pruner.spec.name: pruner.spec for pruner in (tokenprune_iwp.Iwp, tokenprune_iwp.IwpExact, tokenprune_iwp.Oracle)
}
RECORDED = conformance.checks("spec", "plan", "choice")
#: The laws that the fast tests hold every variant to; at the defaults they run all.
QUICK = ("count", "indices", "batch", "degenerate")
SHALLOW = ModelFacts("recorded", num_layers=6, encoder_layers=4, has_cls=True, encoder_read_layer=3)


def cases() -> Iterator[Any]:
    """Pruner, options and law."""
    for name in SPECS:
        for options in conformance.variants(name):
            for check in RECORDED:
                said = ",".join(f"{key}={value}" for key, value in options.items())
                marks = () if not options or check.name in QUICK else pytest.mark.thorough
                yield pytest.param(name, options, check, id=f"{name}-{said}-{check}", marks=marks)


@pytest.mark.parametrize(("name", "options", "check"), list(cases()))
def test_a_pruner_keeps_a_law(name: str, options: Mapping[str, Any], check: Check) -> None:
    check.run(name, options=options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("check", conformance.checks(), ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_a_pruner_keeps_a_law_at_every_budget(name: str, check: Check) -> None:
    check.run(name, thorough=True)


@pytest.mark.parametrize("name", SPECS)
def test_every_option_is_tried_by_a_variant(name: str) -> None:
    assert {key for options in SPECS[name].variants for key in options} == set(SPECS[name].defaults)


@pytest.mark.parametrize("check", [check for check in RECORDED if check.name in ("count", "indices", "batch")], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_counts_and_batches_at_many_numbers_of_tokens(name: str, check: Check) -> None:
    budgets = tuple(Budget(tokens=tokens) for tokens in (1, 2, 9, 24, 40, 47, 48))
    result = check.evaluate(PrunerUnderTest.of(name, budgets=budgets))
    assert result.status == "ok", result.line()


@pytest.mark.parametrize("name", SPECS)
def test_every_declared_need_is_used(name: str) -> None:
    tested = PrunerUnderTest.of(name)
    used = run_plan(tested.pruner, tested.plan(Budget(tokens=9), 48) or (), pictures()).used
    assert used == set(SPECS[name].needs)


@pytest.mark.parametrize("name", SPECS)
def test_mass_correction_speaks_for_every_token(name: str) -> None:
    pruner = get_pruner(name, mass_correction=True)
    stops = tuple(pruner.plan(SHALLOW, Budget(tokens=12), 48))
    for choice in run_plan(pruner, stops, pictures(5)).choices:
        assert choice.kept.log_weights is not None
        assert float(choice.kept.log_weights.exp().sum()) == pytest.approx(48, rel=1e-4)
    assert pruner.positions == get_pruner(name).positions


@pytest.mark.parametrize("name", SPECS)
def test_the_cut_enters_layer_two_of_a_small_model(name: str) -> None:
    pruner = get_pruner(name)
    (stop,) = pruner.plan(SHALLOW, Budget(ratio=0.25), 256)
    assert (stop.site, stop.keep(256)) == (Site("layer", 2), 64)
    (average,) = pruner.plan(SHALLOW, Budget(ratio=0.5, account="average"), 256)
    assert average.keep(256) == 64  # (2 x 256 + 4 x 64) / 6 = 128
    with pytest.raises(BudgetError, match="its floor is"):
        pruner.plan(SHALLOW, Budget(ratio=0.1, account="average"), 256)
    with pytest.raises(IncompatibleError, match="has 6 layers"):
        get_pruner(name, layer=6).plan(SHALLOW, Budget(ratio=0.25), 256)


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
    ],
)
def test_options_out_of_range_are_refused_when_the_pruner_is_built(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        get_pruner(name, **options)


@pytest.mark.parametrize("name", SPECS)
def test_specs_say_where_they_come_from(name: str) -> None:
    spec = SPECS[name]
    assert spec.source.title
    assert spec.formula
    assert len(spec.fidelity) > 80
    (complete,) = (check for check in RECORDED if check.name == "spec")
    assert complete.run(name).status == "ok"


def test_listing_the_plugin_imports_no_torch() -> None:
    code = "import sys, tokenprune_iwp; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
