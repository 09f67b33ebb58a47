"""Every method of the zoo keeps every law of the conformance kit, at its defaults and under each of its variants."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import tokenprune_zoo
from recorded_stops import DEEP, assert_legal, build, run, video

from tokenprune import Budget
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.plugins import default_host
from tokenprune.pruner import Decision
from tokenprune.testing import conformance
from tokenprune.testing.conformance import Check, PrunerUnderTest
from tokenprune.testing.conformance.plan_run import pictures, run_plan

SPECS = {method.spec.name: method.spec for method in tokenprune_zoo.METHODS}
#: Methods that look at the frames of a video.
VIDEO = [name for name, spec in SPECS.items() if any(word in spec.axes.groups for word in ("frame", "video"))]
RECORDED = conformance.checks("spec", "plan", "choice")
#: The laws that the fast tests hold every variant to; at the defaults they run all.
QUICK = ("count", "identity")
#: Options that have no variant, and what tests them.
ELSEWHERE = {
    "cdpruner": {"published"},  # goes by the whole batch, as published: the golden vectors
    "visionzip": {"published"},  # counts a CLS row that is not there, as published: the golden vectors
    "fitprune": {"tables"},  # belong to one number of tokens: `test_calibration`
}
#: Laws that published code breaks, so that its reproduction does: tokens that nothing attends to make an empty row.
#: Both laws try a black picture or a black video.
PUBLISHED_BREAKS = {(name, law) for name in ("prumerge", "prumerge-plus") for law in ("degenerate", "video")}


def cases() -> Iterator[Any]:
    """Method, options and law; with options only some laws are held by the fast tests."""
    for name in SPECS:
        for options in conformance.variants(name):
            for check in RECORDED:
                if options.get("published") and (name, check.name) in PUBLISHED_BREAKS:
                    continue
                quick = check.name in QUICK if options or (check.name == "video" and name not in VIDEO) else True
                said = ",".join(f"{key}={value}" for key, value in options.items())
                marks = () if quick else pytest.mark.thorough
                yield pytest.param(name, options, check, id=f"{name}-{said}-{check}", marks=marks)


@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize(("name", "options", "check"), list(cases()))
def test_a_method_keeps_a_law(name: str, options: Mapping[str, Any], check: Check) -> None:
    check.run(name, options=options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("check", conformance.checks(), ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_a_method_keeps_a_law_at_every_budget(name: str, check: Check) -> None:
    check.run(name, thorough=True)


@pytest.mark.parametrize("check", conformance.checks("model"), ids=str)
@pytest.mark.parametrize("name", ["fastv", "visionzip"])  # the laws on a model are the engine's: these stand for all
def test_a_method_keeps_a_law_on_the_shipped_model(name: str, check: Check) -> None:
    check.run(name)


@pytest.mark.parametrize("name", SPECS)
def test_every_option_is_tried_by_a_variant(name: str) -> None:
    tried = {key for options in SPECS[name].variants for key in options}
    assert tried | ELSEWHERE.get(name, set()) == set(SPECS[name].defaults)


@pytest.mark.parametrize("check", [check for check in RECORDED if check.name in ("count", "indices", "batch")], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_counts_and_batches_at_many_numbers_of_tokens(name: str, check: Check) -> None:
    budgets = tuple(Budget(tokens=tokens) for tokens in (1, 2, 9, 24, 40, 47, 48))
    result = check.evaluate(PrunerUnderTest.of(name, budgets=budgets))
    assert result.status in ("ok", "skipped"), result.line()


@pytest.mark.thorough
@pytest.mark.parametrize("name", VIDEO)
def test_videos_at_many_numbers_of_tokens(name: str) -> None:
    (check,) = (check for check in RECORDED if check.name == "video")
    budgets = tuple(Budget(tokens=tokens) for tokens in (1, 2, 5, 11, 12, 14, 35, 60, 95, 96))
    result = check.evaluate(PrunerUnderTest.of(name, budgets=budgets))
    assert result.status == "ok", result.line()


SOUND = [
    pytest.param(name, options, id=f"{name}-" + ",".join(f"{key}={value}" for key, value in options.items()))
    for name in SPECS
    for options in conformance.variants(name)
    if not options.get("published")
]


@pytest.mark.parametrize(("name", "options"), SOUND)
def test_merged_rows_are_means_and_no_weight_is_below_one_token(name: str, options: Mapping[str, Any]) -> None:
    pruner = build(name, options)
    for tokens in (9, 40):
        for recording in (pictures(3), video(3, 4)):
            plan = tuple(pruner.plan(DEEP, Budget(tokens=tokens), recording.tokens))
            for choice in run_plan(pruner, plan, recording).of_prefill():
                assert_legal(Decision((choice.kept,)), 1, choice.tokens, len(choice.kept.anchors))
                assert bool(len(choice.kept.anchors)) == (not choice.stop.drop_all)


@pytest.mark.parametrize("name", SPECS)
def test_every_declared_need_is_used_under_some_options(name: str) -> None:
    used: set[str] = set()
    for tested in PrunerUnderTest.every_variant(name):
        for tokens in (9, 40):
            stops = tested.plan(Budget(tokens=tokens), pictures().tokens) or ()
            used |= run_plan(tested.pruner, stops, pictures()).used
    assert used - {"hidden"} == set(SPECS[name].needs) - {"hidden"}
    assert used <= set(SPECS[name].needs)


@pytest.mark.parametrize("name", SPECS)
def test_mass_correction_speaks_for_every_token(name: str) -> None:
    pruner = build(name, mass_correction=True)
    recording = video(5, 4) if name in VIDEO else pictures(5)
    stops = tuple(pruner.plan(DEEP, Budget(tokens=12), recording.tokens))
    assert pruner.positions == build(name).positions
    (first, *_) = [stop for stop in stops if stop.site.kind != "decode"]
    if first.drop_all or first.auto:
        return
    plain = run_plan(build(name), (first,), recording)
    for choice, without in zip(run_plan(pruner, (first,), recording).choices, plain.choices, strict=True):
        assert choice.kept.log_weights is not None
        assert float(choice.kept.log_weights.amax()) > 0.0
        if without.kept.merge is None and without.kept.log_weights is None:
            assert float(choice.kept.log_weights.exp().sum()) == pytest.approx(recording.tokens, rel=1e-4)


@pytest.mark.parametrize("name", VIDEO)
def test_tokens_that_make_no_equal_frames_are_refused(name: str) -> None:
    recording = dataclasses.replace(video(0, 4), frames=5)
    with pytest.raises(IncompatibleError, match="do not make 5 equal frames"):
        run(build(name), recording, Budget(tokens=10))


@pytest.mark.parametrize("name", SPECS)
def test_specs_say_where_they_come_from(name: str) -> None:
    spec = SPECS[name]
    assert spec.source.title
    assert spec.source.url or spec.source.code
    assert (spec.source.url and spec.source.code) or name not in VIDEO
    assert spec.formula
    assert len(spec.fidelity) > 80
    (complete,) = (check for check in RECORDED if check.name == "spec")
    assert complete.run(name).status == "ok"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cdpruner", {"theta": 1.0}),
        ("dart", {"pivot_image": 0}),
        ("dycoke", {"decode_rate": 1.0}),
        ("dycoke", {"merging_ratio": 1.1}),
        ("fastv", {"layer": 0}),
        ("fastvid", {"anchor_step": 0}),
        ("fastvid", {"anchor_weight": -0.1}),
        ("fastvid", {"context_share": 2.0}),
        ("fastvid", {"segments": 0}),
        ("feather", {"layers": (8,)}),
        ("feather", {"ratio": 0.0}),
        ("fitprune", {"tables": {"64": "all"}}),
        ("fitprune", {"tables": {"64": (-1,)}}),
        ("gprune", {"temperature": 0.0}),
        ("gprune", {"threshold": 0.0}),
        ("hiprune", {"alpha": 2.0}),
        ("holitom", {"centre_weight": 1.1}),
        ("holitom", {"inner_rate": 1.0}),
        ("holov", {"num_chunks": 0}),
        ("mustdrop", {"global_threshold": 0.0}),
        ("mustdrop", {"window_threshold": 2.0}),
        ("prumerge", {"neighbours": -1}),
        ("prumerge-plus", {"neighbours": -1}),
        ("prunevid", {"alpha": 0.0}),
        ("prunevid", {"cluster_ratio": -1.0}),
        ("prunevid", {"segment_ratio": 1.5}),
        ("scope", {"alpha": -1.0}),
        ("scope", {"combine": "max"}),
        ("sparsevlm", {"heads": 0}),
        ("sparsevlm", {"kept": (3,)}),
        ("sparsevlm", {"recycle_share": 2.0}),
        ("tome", {"schedule": "cosine"}),
        ("topv", {"epsilon": 0.0}),
        ("topv", {"recover_share": 2.0}),
        ("vidcom2", {"temperature": 0.0}),
        ("visionzip", {"contextual_share": 1.0}),
        ("vispruner", {"drop_per_round": 0}),
        ("vispruner", {"important_ratio": 1.5}),
        ("vscan", {"local_share": 2.0}),
        ("vscan", {"window": 0}),
        ("vtw", {"eta": 0.0}),
    ],
)
def test_options_out_of_range_are_refused_when_the_pruner_is_built(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, options)
    assert caught.value.hint or name not in VIDEO


def test_all_methods_are_registered() -> None:
    host = default_host()
    assert [name for name in host.pruners.names() if host.pruners.owner(name) == "tokenprune-zoo"] == list(SPECS)


def test_listing_the_zoo_imports_no_torch() -> None:
    code = "import sys, tokenprune_zoo; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
