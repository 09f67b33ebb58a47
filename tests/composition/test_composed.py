"""Composed pruners: legal choices from every part, named methods as points, refusals with a reason."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.composition.points import HOST, IDS, IWP, POINTS, build
from tokenprune import Budget, dual
from tokenprune.composition import AXES, PARTS, Composed
from tokenprune.composition.groups import GROUPS, Within
from tokenprune.errors import ConfigError, IncompatibleError, UndeclaredNeedError, UnknownNameError
from tokenprune.pruner import NEEDS, Decision, ModelFacts, Pruner
from tokenprune.testing import RecordedView, Recording, random_recording

FACTS = ModelFacts("recorded", num_layers=6, encoder_layers=4, has_cls=True, encoder_read_layer=3)


def decide(pruner: Pruner, recording: Recording, keep: int) -> Decision:
    (stop,) = pruner.plan(FACTS, Budget(tokens=keep), recording.tokens)
    return pruner.decide(RecordedView(recording, keep, pruner.needs, site=stop.site), stop, {})


def assert_same(first: Decision, second: Decision) -> None:
    for one, other in zip(first.units, second.units, strict=True):
        assert one.anchors.tolist() == other.anchors.tolist()
        assert (one.log_weights is None) == (other.log_weights is None)
        if one.log_weights is not None and other.log_weights is not None:
            torch.testing.assert_close(one.log_weights, other.log_weights)


@pytest.mark.parametrize("keep", [1, 7, 20])
@pytest.mark.parametrize(("name", "options", "point"), POINTS, ids=IDS)
def test_a_named_method_is_a_point(name: str, options: dict[str, Any], point: dict[str, Any], keep: int) -> None:
    named, composed = HOST.pruners.get(name).build(options), build(**point)
    recording = random_recording(seed=keep)
    assert_same(decide(named, recording, keep), decide(composed, recording, keep))
    assert composed.plan(FACTS, Budget(tokens=keep), 48) == named.plan(FACTS, Budget(tokens=keep), 48)
    assert composed.positions == named.positions


def legal() -> list[dict[str, str]]:
    """Every combination of parts that is not refused."""
    found = []
    sites = ["encoder", "input", "layer:2"]
    for site, magnitude, duplication, selector in itertools.product(
        sites, PARTS["magnitude"], PARTS["duplication"], [*PARTS["selector"], "auto"]
    ):
        parts = {"site": site, "magnitude": magnitude, "duplication": duplication, "selector": selector}
        try:
            build(**parts)
        except ConfigError:
            continue
        found.append(parts)
    return found


LEGAL = legal()


def test_every_part_has_a_place_at_which_it_works() -> None:
    for axis in ("magnitude", "duplication", "selector"):
        assert {parts[axis] for parts in LEGAL} >= set(PARTS[axis])
    assert {parts["site"] for parts in LEGAL} == {"encoder", "input", "layer:2"}


@pytest.mark.thorough
@given(
    parts=st.sampled_from(LEGAL),
    groups=st.sampled_from(sorted(PARTS["groups"])),
    merge=st.sampled_from(sorted(PARTS["merge"])),
    keep=st.integers(1, 48),
    seed=st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_what_is_not_refused_chooses_legally_and_alike_for_a_unit_alone(
    parts: dict[str, str], groups: str, merge: str, keep: int, seed: int
) -> None:
    if parts["duplication"] == "gram":
        merge = "none"
    pruner = build(**parts, groups=groups, merge=merge)
    recording = random_recording(seed=seed)
    together = decide(pruner, recording, keep)
    for kept in together.units:
        anchors = kept.anchors.tolist()
        assert anchors == sorted(set(anchors))
        assert len(anchors) == keep
        assert 0 <= anchors[0] <= anchors[-1] < 48
        if merge == "nearest-mean":
            assert kept.merge is not None
            torch.testing.assert_close(kept.merge.sum(dim=-1), torch.ones(keep))
            assert ((kept.merge > 0).sum(dim=0) == 1).all()  # every token goes to one row
        if merge == "mass-correction":
            assert kept.log_weights is not None
            assert float(kept.log_weights.exp().sum()) == pytest.approx(48, rel=1e-4)
    if parts["selector"] != "random":  # a random draw follows the content, which a recording of one unit shares
        alone = decide(pruner, recording.unit(1), keep)
        assert alone.units[0].anchors.tolist() == together.units[1].anchors.tolist()


@pytest.mark.thorough
@pytest.mark.parametrize("site", ["encoder", "input", "layer:2"])
def test_needs_are_exact(site: str) -> None:
    """What is declared is enough, and nothing of it is superfluous."""
    recording = random_recording()
    for parts in (parts for parts in LEGAL if parts["site"] == site):
        pruner = build(**parts)
        assert set(pruner.needs) <= set(Composed.spec.needs) <= set(NEEDS)
        (stop,) = pruner.plan(FACTS, Budget(tokens=6), 48)
        pruner.decide(RecordedView(recording, 6, pruner.needs, site=stop.site), stop, {})
        for need in pruner.needs:
            view = RecordedView(recording, 6, set(pruner.needs) - {need}, site=stop.site)
            with pytest.raises(UndeclaredNeedError, match=need):
                pruner.decide(view, stop, {})


@pytest.mark.parametrize(
    ("options", "reason", "hint"),
    [
        ({"magnitude": "clss"}, "unknown magnitude `clss`", "`cls`"),
        ({"duplication": "feature"}, "unknown duplication `feature`", "`features`"),
        ({"selector": "topk"}, "unknown selector `topk`", "`top-k`"),
        ({"groups": "window"}, "unknown groups `window`", "`windows`"),
        ({"merge": "mean"}, "unknown merge `mean`", "`nearest-mean`"),
        ({"site": "inptu"}, "unknown site `inptu`", "`input`"),
        ({"site": "layer"}, "not a site: `layer`", "`layer:2`"),
        ({"site": "input:2"}, "not a site: `input:2`", "`layer:2`"),
        ({"site": "pixels"}, "cannot cut at site `pixels`: at `pixels` there are no tokens yet", "`encoder`"),
        ({"site": "tower:1"}, "cannot cut at site `tower:1`", "`encoder`"),
        ({"site": "decode"}, "cannot cut at site `decode`", "`layer:2`"),
        ({"magnitude": "kernel", "site": "encoder"}, "reads what the decoder is given", "cut at `input` or `layer:2`"),
        ({"duplication": "value-gauss", "site": "encoder"}, "not there yet at site `encoder`", "`features`"),
        ({"selector": "dpp"}, "selector `dpp` needs a duplication", "at site `input`"),
        ({"selector": "coverage", "magnitude": "cls"}, "selector `coverage` needs a duplication", "`features`"),
        ({"selector": "top-k"}, "selector `top-k` needs a magnitude", "`cls`"),
        ({"selector": "max-min", "duplication": "features", "magnitude": "cls"}, "does not look at the magn", "`dpp`"),
        ({"selector": "top-k", "duplication": "features", "magnitude": "cls"}, "does not look at the dupl", "`mmr`"),
        ({"selector": "random", "magnitude": "cls"}, "does not look at the magnitude", "magnitude `one`"),
        ({"duplication": "gram", "selector": "mmr"}, "carries sizes", "take selector `dpp`"),
        ({"duplication": "gram", "selector": "dpp", "merge": "nearest-mean"}, "carries sizes", "without a merge"),
        (
            {"magnitude": "kernel", "duplication": "features", "selector": "dpp", "magnitude_scale": "none"},
            "`kernel` can be negative",
            "`rank` or `minmax`",
        ),
        ({"magnitude": "attention", "magnitude_layer": 1}, "only decoder layers up to 0 have run", "at most 0"),
        ({"magnitude": "cls", "trade_off": 0.5}, "no part of this composition reads it", "selector `mmr`"),
        ({"magnitude": "cls", "rope_in_magnitude": False}, "`rope_in_magnitude` is set", "magnitude `kernel`"),
        ({"selector": "random", "seed": 1, "window": 2}, "`window` is set", "groups `windows`"),
        ({"magnitude": "kernel", "rows": "txt"}, "unknown value of option `rows` `txt`", "`text`"),
        ({**IWP, "trade_off": 1.5}, r"`trade_off` must lie in \[0, 1\], got 1.5", ""),
        ({**IWP, "merge": "mass-correction", "mass_cap": 0.5}, "`mass_cap` must be 0 or at least 1", "no limit"),
        ({"magnitud": "cls"}, "unknown option of pruner `composed` `magnitud`", "`magnitude`"),
    ],
)
def test_what_cannot_be_composed_is_refused_with_a_reason_and_what_works(
    options: dict[str, Any], reason: str, hint: str
) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=reason) as caught:
        build(**options)
    assert hint in caught.value.hint


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="cuts at decoder layer 6, but the model has 6 layers"):
        build(magnitude="attention", site="layer:6").plan(FACTS, Budget(tokens=4), 48)


@pytest.mark.parametrize(
    ("options", "selector"),
    [
        ({}, "stride"),
        ({"magnitude": "cls"}, "top-k"),
        ({"duplication": "features"}, "max-min"),
        ({"magnitude": "cls", "duplication": "features"}, "mmr"),
    ],
)
def test_the_automatic_selector_is_the_named_one(options: dict[str, str], selector: str) -> None:
    automatic, named = build(**options), build(**options, selector=selector)
    assert automatic.spec.axes == named.spec.axes
    assert_same(decide(automatic, random_recording(), 9), decide(named, random_recording(), 9))


def test_the_formula_and_the_point_come_from_the_parts() -> None:
    spec = build(**IWP, merge="mass-correction", overlap="mean", groups="windows").spec
    assert spec.formula == (
        "in each window: argmax_i lambda rank(log kappa(q, k_i) ||v_i||) - (1-lambda) mean_{j in S} "
        "cos(v_i,v_j) exp(-||k_i-k_j||^2/(2 tau^2 sqrt d)), in chunks; "
        "log w_j on the kept keys, w_j = 1 + dropped ones nearest to j"
    )
    assert (spec.axes.site, spec.axes.selector, spec.axes.merge) == ("layer:2", "chunked-mmr", "mass-correction")
    assert Composed.spec.axes.selector == "any part"  # the class's own spec stays as it was


def test_sites_are_read() -> None:
    for text in ("encoder", "input", "layer:0", "layer:3", "layer:3.mid"):
        assert str(build(site=text).plan(FACTS, Budget(tokens=4), 48)[0].site) == text


@pytest.mark.parametrize("window", [2, 3, 5])
def test_windows_share_the_budget_and_take_their_best(window: int) -> None:
    """Against one window at a time, by hand."""
    recording, keep = random_recording(seed=4, grid=(6, 8)), 17
    chosen = decide(build(magnitude="norm", groups="windows", window=window), recording, keep)
    assert recording.hidden is not None
    score = recording.hidden.norm(dim=-1)
    windows: dict[tuple[int, int], list[int]] = {}
    for token in range(48):
        windows.setdefault((token // 8 // window, token % 8 // window), []).append(token)
    sizes = torch.tensor([len(members) for members in windows.values()])
    quotas = dual.split_budget(sizes[None], keep, sizes)[0].tolist()
    assert sum(quotas) == keep
    for unit, kept in enumerate(chosen.units):
        expected: list[int] = []
        for members, quota in zip(windows.values(), quotas, strict=True):
            expected += sorted(members, key=lambda token: -float(score[unit, token]))[:quota]
        assert kept.anchors.tolist() == sorted(expected)


def test_frames_share_the_budget_evenly() -> None:
    one = random_recording(seed=1, grid=(12, 4))
    video = type(one)(tokens=48, hidden=one.hidden, grid=(3, 4), frames=4)
    chosen = decide(build(magnitude="norm", groups="frames"), video, 8)
    for kept in chosen.units:
        assert torch.bincount(kept.anchors // 12).tolist() == [2, 2, 2, 2]


def test_groups_need_the_whole_grid() -> None:
    view = RecordedView(random_recording(), 4, ["geometry"])
    view.original_tokens = 96
    with pytest.raises(IncompatibleError, match="`windows` need all 96 tokens"):
        list(GROUPS["windows"].split(view, build(groups="windows")))


def test_a_duplication_within_a_group_is_a_part_of_the_whole() -> None:
    whole = dual.cosine_duplication(torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)), signed=True)
    members = torch.tensor([[1, 4, 6, 8]] * 2)
    within = Within(whole, members)
    assert (within.units, within.tokens) == (2, 4)
    expected = whole.full()[:, members[0]][:, :, members[0]]
    torch.testing.assert_close(within.full(), expected)
    columns = torch.tensor([[2, 0], [3, 1]])
    torch.testing.assert_close(within.block(None, columns), expected.gather(-1, columns.unsqueeze(1).expand(-1, 4, -1)))


def test_the_gram_matrix_is_the_inner_product_of_updates() -> None:
    """Explicit random features of the softmax kernel are not needed: kappa is a number for every pair."""
    recording = random_recording(seed=2)
    view = RecordedView(recording, 4, ["qkv"])
    options = build(duplication="gram", selector="dpp")
    found = options.composition.duplication.of(view, options, signed=True)
    assert found is not None
    keys, values = dual.centre(view.keys(rope=True)).double(), view.values().double()
    expected = torch.zeros(2, 48, 48, dtype=torch.float64)
    for head in range(keys.shape[1]):
        kernel = (keys[:, head] @ keys[:, head].transpose(-1, -2) / keys.shape[-1] ** 0.5).exp()
        gram = kernel * (values[:, head] @ values[:, head].transpose(-1, -2))
        expected += gram / gram.diagonal(dim1=-2, dim2=-1).amax(dim=-1)[:, None, None] / keys.shape[1]
    torch.testing.assert_close(found.full().double(), expected, rtol=1e-4, atol=1e-5)


def test_pivots_take_what_is_least_like_them() -> None:
    recording, keep = random_recording(seed=3), 12
    chosen = decide(build(magnitude="norm", duplication="features", selector="pivots", pivots=3), recording, keep)
    assert recording.hidden is not None
    assert recording.encoder_features is not None
    for unit, kept in enumerate(chosen.units):
        cosine = torch.nn.functional.cosine_similarity(
            recording.encoder_features[unit][:, None], recording.encoder_features[unit][None], dim=-1
        )
        order = recording.hidden[unit].norm(dim=-1).argsort(descending=True, stable=True).tolist()
        taken = order[:3]
        for pivot in order[:3]:
            free = [token for token in range(48) if token not in taken]
            taken = taken + sorted(free, key=lambda token, row=cosine[pivot]: float(row[token]))[:3]
        assert kept.anchors.tolist() == sorted(taken)


def test_every_option_is_an_axis_or_is_read_by_some_part() -> None:
    read = {name for parts in PARTS.values() for part in parts.values() for name in part.reads}
    assert set(Composed.spec.defaults) == {*AXES, *read, "position_ids"}


def test_composing_imports_no_torch() -> None:
    code = (
        "import sys; from tokenprune import load_host; "
        "load_host().pruners.get('composed').build({'magnitude': 'cls', 'duplication': 'features'}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
