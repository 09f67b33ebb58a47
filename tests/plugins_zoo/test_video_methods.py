"""The video methods: exact counts, identity, batches, degenerate videos, and what each of them promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import tokenprune_zoo
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenprune_zoo.prunevid import refined

from tests.engine.models import batch, prompt, random_llava
from tests.plugins_zoo.test_every_pruner import assert_legal, assert_same
from tokenprune import Budget, dual
from tokenprune.engine import pruned
from tokenprune.errors import ConfigError, IncompatibleError, UndeclaredNeedError
from tokenprune.plugins import Host
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, State, Stop
from tokenprune.registry import PrunerSpec
from tokenprune.testing import RecordedView, Recording, random_recording

FACTS = ModelFacts("recorded", num_layers=8, encoder_layers=5, has_cls=True, encoder_read_layer=3)
NO_CLS = dataclasses.replace(FACTS, has_cls=False)
GRID = (3, 4)
CELLS = GRID[0] * GRID[1]
LENGTHS = (1, 2, 3, 8)
#: Options to try beside the defaults.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "prunevid": [
        {"tau": -1.0},
        {"tau": 1.0},
        {"segment_ratio": 1.0},
        {"alpha": 1.0},
        {"alpha": 0.1},
        {"layer": 2, "relative": False},
    ],
    "dycoke": [
        {"merging_ratio": 0.0},
        {"merging_ratio": 1.0},
        {"decode_rate": 0.0},
        {"similarity": 2.0, "decode_rate": 0.9},
        {"layer": 2, "relative": False},
    ],
    "fastvid": [
        {"segments": 1},
        {"segments": 100},
        {"threshold": -2.0},
        {"context_share": 0.0},
        {"context_share": 1.0},
        {"anchor_step": 1},
        {"anchor_weight": 0.0},
    ],
    "holitom": [
        {"tau": -2.0},
        {"tau": 1.0},
        {"centre_weight": 1.0},
        {"inner_rate": 0.0},
        {"inner_rate": 0.9},
        {"layer": 2, "relative": False},
    ],
    "vidcom2": [{"temperature": 1e-4}, {"temperature": 10.0}],
    "evs": [],
}


def specs() -> dict[str, PrunerSpec]:
    host = Host()
    assert host.add(tokenprune_zoo, "zoo").outcome == "loaded"
    return {spec.name: spec for spec in host.pruners if spec.name in OPTIONS}


SPECS = specs()
VARIANTS = [
    pytest.param(name, options, id=f"{name}-" + ",".join(f"{key}={value}" for key, value in options.items()))
    for name, variants in OPTIONS.items()
    for options in ({}, *variants)
]


def video(seed: int, frames: int, *, units: int = 2) -> Recording:
    """Scenes with a cut: a still background in which one row of cells changes."""
    recording = random_recording(seed, units=units, grid=(frames * GRID[0], GRID[1]))
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(units, 2, CELLS, 24, generator=generator)
    cut = torch.arange(frames) * 2 // max(2, frames)
    cells = scenes[:, cut] + 0.02 * torch.randn(units, frames, CELLS, 24, generator=generator)
    cells[:, :, : GRID[1]] = torch.randn(units, frames, GRID[1], 24, generator=generator)
    return dataclasses.replace(recording, grid=GRID, frames=frames, projected=cells.flatten(1, 2))


def still(recording: Recording, *, zero: bool) -> Recording:
    """Every token of every tensor the same, or zero."""
    changed: dict[str, Any] = {}
    for entry in dataclasses.fields(recording):
        value = getattr(recording, entry.name)
        if isinstance(value, torch.Tensor) and value.dim() > 2 and value.shape[-2] == recording.tokens:
            same = value[..., :1, :].expand_as(value)
            changed[entry.name] = torch.zeros_like(value) if zero else same.contiguous()
    return dataclasses.replace(recording, **changed)


def at(
    stop: Stop, pruner: Pruner, recording: Recording, state: State | None = None, facts: ModelFacts = FACTS
) -> Decision:
    keep = min(recording.tokens, stop.keep(recording.tokens))
    view = RecordedView(recording, keep, pruner.spec.needs, site=stop.site, facts=facts)
    return pruner.decide(view, stop, {} if state is None else state)


def run(pruner: Pruner, recording: Recording, budget: Budget, facts: ModelFacts = FACTS) -> list[Decision]:
    """Every stop on the whole recording, with the state of the stops before it."""
    state: State = {}
    return [at(stop, pruner, recording, state, facts) for stop in pruner.plan(facts, budget, recording.tokens)]


def prefill(stops: Sequence[Stop]) -> list[Stop]:
    return [stop for stop in stops if stop.site.kind != "decode"]


def shared(name: str, options: dict[str, Any] | None = None) -> Pruner:
    pruner: Pruner = SPECS[name].build(options)
    return pruner


def test_every_video_method_is_there_and_tested_with_every_option() -> None:
    assert set(SPECS) == set(OPTIONS)
    elsewhere = {"published", "cluster_ratio"}  # see the golden vectors and the tests of published counts below
    for name, spec in SPECS.items():
        tried = {key for options in OPTIONS[name] for key in options}
        assert tried | elsewhere >= set(spec.defaults), name


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_exact_counts_and_batch_equals_singles(name: str, options: dict[str, Any], frames: int) -> None:
    pruner, recording = shared(name, options), video(3, frames)
    tokens = recording.tokens
    budgets = {1, tokens // 4, tokens - 2} if options else {1, 2, 5, *range(0, tokens, 7), tokens - 1, tokens}
    for keep in sorted(budgets - {0}):
        stops = pruner.plan(FACTS, Budget(tokens=keep), tokens)
        assert prefill(stops)[-1].keep(tokens) == keep
        assert not any(stop.auto for stop in stops)
        decisions = run(pruner, recording, Budget(tokens=keep))
        assert len(decisions) == len(stops)
        for stop, decision in zip(stops, decisions, strict=True):
            assert_legal(decision, 2, tokens, min(tokens, stop.keep(tokens)))
        alone = run(pruner, recording.unit(1), Budget(tokens=keep))
        for whole, single in zip(decisions, alone, strict=True):
            assert_same(single, Decision((whole.units[1],)))


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_keeping_everything_changes_nothing(name: str, options: dict[str, Any], frames: int) -> None:
    recording = video(1, frames)
    for decision in run(shared(name, options), recording, Budget(ratio=1.0)):
        for kept in decision.units:
            assert kept.anchors.tolist() == list(range(recording.tokens))
            assert kept.merge is None


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_equal_zero_and_short_tokens(name: str, frames: int) -> None:
    recording = video(4, frames)
    given = (recording.to(torch.bfloat16), still(recording, zero=False), still(recording, zero=True))
    for published in (False, True):
        pruner = shared(name, {"published": published})
        for recorded in given:
            stops = pruner.plan(FACTS, Budget(ratio=0.3), recording.tokens)
            for stop, decision in zip(stops, run(pruner, recorded, Budget(ratio=0.3)), strict=True):
                if not published:
                    assert_legal(decision, 2, recording.tokens, stop.keep(recording.tokens))
                for kept in decision.units:
                    assert len(set(kept.anchors.tolist())) == len(kept.anchors)
                    assert kept.merge is None or torch.isfinite(kept.merge).all()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_the_same_again(name: str) -> None:
    for published in (False, True):
        pruner = shared(name, {"published": published})
        first, second = (run(pruner, video(6, 8), Budget(ratio=0.25)) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_published_counts_follow_from_the_data_and_not_from_the_batch(name: str, frames: int) -> None:
    pruner, recording = shared(name, {"published": True}), video(5, frames, units=3)
    assert all(stop.auto for stop in pruner.plan(FACTS, Budget(ratio=0.3), recording.tokens))
    whole, alone = (run(pruner, given, Budget(ratio=0.3)) for given in (recording, recording.unit(2)))
    for decision, single in zip(whole, alone, strict=True):
        assert_same(single, Decision((decision.units[2],)))
        for kept in decision.units:
            assert len(set(kept.anchors.tolist())) == len(kept.anchors) <= recording.tokens


@pytest.mark.parametrize("name", sorted(SPECS))
def test_only_declared_needs_are_asked_for(name: str) -> None:
    """Each need taken away makes the pruner stop at one of its views, so none is declared in vain."""
    pruner, recording = shared(name), video(0, 4)
    stops = pruner.plan(FACTS, Budget(tokens=20), recording.tokens)

    def visit(needs: set[str]) -> None:
        for stop in stops:
            view = RecordedView(recording, stop.keep(recording.tokens), needs, site=stop.site, facts=FACTS)
            pruner.decide(view, stop, {})

    needs = set(SPECS[name].needs)
    visit(needs)
    for need in needs:
        with pytest.raises(UndeclaredNeedError, match=f"`{need}`"):
            visit(needs - {need})


@pytest.mark.parametrize("name", sorted(SPECS))
def test_specs_say_where_they_come_from(name: str) -> None:
    spec = SPECS[name]
    assert spec.source.url
    assert spec.source.code
    assert spec.formula
    assert len(spec.fidelity) > 80
    for option in spec.defaults:
        assert f"{option}:" in (spec.load().__doc__ or ""), option


@pytest.mark.parametrize("name", ["prunevid", "dycoke", "holitom"])
def test_a_shallower_model_is_refused_by_absolute_layers(name: str) -> None:
    layer = SPECS[name].defaults["layer"]
    shallow = dataclasses.replace(FACTS, num_layers=layer)
    with pytest.raises(IncompatibleError, match=f"the model has {layer} layers"):
        shared(name, {"relative": False}).plan(shallow, Budget(ratio=0.3), 96)
    deep = dataclasses.replace(FACTS, num_layers=32)
    assert shared(name).plan(deep, Budget(ratio=0.3), 96)[-1].site.layer == layer


@pytest.mark.parametrize("name", sorted(SPECS))
def test_averages_are_met(name: str) -> None:
    pruner = shared(name)
    stops = prefill(pruner.plan(FACTS, Budget(ratio=0.6, account="average"), 96))
    starts = [0, *(stop.site.decoder_layer for stop in stops), FACTS.num_layers]
    sizes = [96, *(stop.keep(96) for stop in stops)]
    total = sum(size * (end - start) for size, start, end in zip(sizes, starts[:-1], starts[1:], strict=True))
    assert total / FACTS.num_layers == pytest.approx(0.6 * 96, abs=0.5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prunevid", {"alpha": 0.0}),
        ("prunevid", {"segment_ratio": 1.5}),
        ("prunevid", {"cluster_ratio": -1.0}),
        ("dycoke", {"merging_ratio": 1.1}),
        ("dycoke", {"decode_rate": 1.0}),
        ("fastvid", {"context_share": 2.0}),
        ("fastvid", {"anchor_weight": -0.1}),
        ("fastvid", {"segments": 0}),
        ("fastvid", {"anchor_step": 0}),
        ("holitom", {"inner_rate": 1.0}),
        ("holitom", {"centre_weight": 1.1}),
        ("vidcom2", {"temperature": 0.0}),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        shared(name, options)
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(SPECS))
def test_tokens_that_make_no_equal_frames_are_refused(name: str) -> None:
    recording = dataclasses.replace(video(0, 4), frames=5)
    with pytest.raises(IncompatibleError, match="do not make 5 equal frames"):
        run(shared(name), recording, Budget(tokens=10))


@pytest.mark.parametrize("name", ["fastvid", "holitom"])
def test_density_noise_breaks_ties_and_must_be_long_enough(name: str) -> None:
    distinct = torch.eye(CELLS).repeat(4, 1)[None]  # all cells of a frame equally far from each other
    recording = dataclasses.replace(video(2, 4, units=1), projected=distinct)
    pruner = shared(name, {"inner_rate": 0.0} if name == "holitom" else None)
    (stop,) = pruner.plan(FACTS, Budget(tokens=16 if name == "fastvid" else 4), recording.tokens)
    plain = at(stop, pruner, recording)
    noise = torch.arange(1000.0)[None]
    assert at(stop, pruner, recording, {"density_noise": noise}).units[0].anchors.tolist() != (
        plain.units[0].anchors.tolist()
    )
    with pytest.raises(ConfigError, match="are needed"):
        at(stop, pruner, recording, {"density_noise": noise[:, :1]})


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_video_method_takes_mass_correction(name: str) -> None:
    pruner, plain, recording = shared(name, {"mass_correction": True}), shared(name), video(5, 4)
    stops = plain.plan(FACTS, Budget(tokens=12), recording.tokens)
    assert pruner.plan(FACTS, Budget(tokens=12), recording.tokens) == stops
    for stop in prefill(stops):
        for kept, reference in zip(at(stop, pruner, recording).units, at(stop, plain, recording).units, strict=True):
            assert kept.anchors.tolist() == reference.anchors.tolist()
            assert kept.log_weights is not None
            assert float(kept.log_weights.amax()) > 0.0


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava(layers=6)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_videos_and_ragged_images_on_a_model(name: str, model: Any) -> None:
    given = [
        (batch([prompt(1, images=4), prompt(2, images=4, text=9)]), True, (16, 16)),
        (batch([prompt(1), prompt(2, text=9), prompt(3, images=2)]), False, (4, 4, 8)),
    ]
    for inputs, frames, left in given:
        with torch.no_grad(), pruned(model, shared(name), 0.25, frames=frames) as session:
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        record = session.records[0]
        assert record.final() == left
        if name == "prunevid":  # caches of the layers before the second cut are cut, too
            assert record.kv_tokens() == tuple(map(float, left))
            assert record.entering() == tuple(round(count / 0.4) for count in left)
        if name == "dycoke":
            assert all(sum(step.visible) < sum(step.cached) for step in session.steps[:1])


# --- EVS ----------------------------------------------------------------------------------------------------------


def test_evs_keeps_the_first_frame_and_what_changes() -> None:
    recording = video(0, 8)
    (stop,) = shared("evs").plan(FACTS, Budget(tokens=CELLS + 2 * GRID[1]), recording.tokens)
    for kept in at(stop, shared("evs"), recording).units:
        assert kept.anchors[:CELLS].tolist() == list(range(CELLS))
        changing = kept.anchors[CELLS:] % CELLS < GRID[1]
        at_the_cut = kept.anchors[CELLS:] // CELLS == 4
        assert (changing | at_the_cut).all()
    published = at(stop, shared("evs", {"published": True}), recording)
    assert_same(published, at(stop, shared("evs"), recording))


def test_evs_under_one_frame_is_spread_evenly_and_published_keeps_the_frame() -> None:
    recording = video(0, 2)
    (stop,) = shared("evs").plan(FACTS, Budget(tokens=3), recording.tokens)
    for kept in at(stop, shared("evs"), recording).units:
        assert kept.anchors.tolist() == [2, 6, 10]
    for kept in at(stop, shared("evs", {"published": True}), recording).units:
        assert kept.anchors.tolist() == list(range(CELLS))


# --- VidCom2 ------------------------------------------------------------------------------------------------------


def test_vidcom2_gives_unusual_frames_more() -> None:
    usual = torch.randn(24, generator=torch.Generator().manual_seed(9))
    frames = usual * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0])[:, None]
    noise = 0.3 * torch.randn(2, 8, CELLS, 24, generator=torch.Generator().manual_seed(1))
    recording = dataclasses.replace(video(0, 8), projected=(frames[:, None] + noise).flatten(1, 2))
    (decision,) = run(shared("vidcom2"), recording, Budget(tokens=30))
    for kept in decision.units:
        counts = (kept.anchors // CELLS).bincount(minlength=8)
        assert counts.argmax() == 5
        assert counts[5] <= CELLS


# --- DyCoke -------------------------------------------------------------------------------------------------------


def test_dycoke_prunes_with_the_published_proportions() -> None:
    recording = video(0, 8)
    weight = 2 + 0.25 * 6  # two references, six others
    pruner = shared("dycoke", {"merging_ratio": 0.75})
    (decision, _) = run(pruner, recording, Budget(tokens=int(weight * CELLS)))
    for kept in decision.units:
        counts = (kept.anchors // CELLS).bincount(minlength=8).tolist()
        assert counts == [CELLS, 3, 3, 3, CELLS, 3, 3, 3]
    (half, _) = run(pruner, recording, Budget(tokens=21))
    for kept in half.units:
        counts = (kept.anchors // CELLS).bincount(minlength=8).tolist()
        assert counts[0] == counts[4] == 6
        assert kept.anchors[:6].tolist() == [1, 3, 5, 7, 9, 11]


def test_dycoke_published_loses_the_last_frame_of_an_odd_number() -> None:
    pruner = shared("dycoke", {"published": True})
    for frames in (3, 9):
        for kept in run(pruner, video(0, frames), Budget(ratio=0.1))[0].units:
            assert int(kept.anchors.max()) < (frames - 1) * CELLS
    for kept in run(pruner, video(0, 1), Budget(ratio=0.1))[0].units:
        assert len(kept.anchors) == CELLS


def decode(pruner: Pruner, rows: torch.Tensor, keep: int, state: State, *, order: tuple[int, ...]) -> Decision:
    """One decoding step of some units, in some order."""
    recording = Recording(tokens=rows.shape[-1], attention={"last": rows[list(order)][:, None, None]})
    view = RecordedView(recording, keep, pruner.spec.needs, site=Site("decode", 3), facts=FACTS)
    view.ids = lambda: order  # type: ignore[method-assign]
    return pruner.decide(view, Stop(view.site, Budget(tokens=keep)), state)


def test_dycoke_chooses_again_when_the_attention_moves() -> None:
    pruner, state = shared("dycoke"), {}
    here, there = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)).softmax(-1), torch.zeros(2, 20)
    there[:, 3:7] = 0.2
    best = here[0].topk(5).indices.sort().values.tolist()
    first = decode(pruner, here, 5, state, order=(0, 1))
    assert first.units[0].anchors.tolist() == best
    again = decode(pruner, here, 5, state, order=(1, 0))  # regrouped, but each unit knows its own last step
    assert [kept.anchors.tolist() for kept in again.units] == [list(range(20))] * 2
    mixed = decode(pruner, torch.stack((there[0], here[1])), 4, state, order=(0, 1))
    assert mixed.units[0].anchors.tolist() == [3, 4, 5, 6]
    assert mixed.units[1].anchors.tolist() == list(range(20))
    back = decode(pruner, here, 5, state, order=(0, 1))  # dropped tokens come back
    assert back.units[0].anchors.tolist() == best


def test_dycoke_plans_views_in_proportion_and_none_where_nothing_goes() -> None:
    pruner = shared("dycoke")
    assert [stop.keep(100) for stop in pruner.plan(FACTS, Budget(ratio=0.5), 100)] == [50, 15]
    assert [stop.keep(100) for stop in pruner.plan(FACTS, Budget(tokens=50), 100)] == [50, 15]
    assert [str(stop.site) for stop in pruner.plan(FACTS, Budget(ratio=0.5), 100)] == ["input", "decode:1"]
    assert len(pruner.plan(FACTS, Budget(ratio=1.0), 100)) == 1
    assert len(shared("dycoke", {"decode_rate": 0.0}).plan(FACTS, Budget(ratio=0.5), 100)) == 1


# --- FastVID ------------------------------------------------------------------------------------------------------


def test_fastvid_merges_whole_segments_and_rows_are_means() -> None:
    recording = video(0, 8)
    (decision,) = run(shared("fastvid", {"segments": 1, "threshold": -2.0}), recording, Budget(tokens=40))
    for kept in decision.units:
        assert kept.merge is not None
        assert kept.labels is not None
        context = torch.tensor([label == "context" for label in kept.labels])
        assert set((kept.anchors[context] // CELLS).tolist()) == {3, 7}
        salient = kept.anchors[~context]
        for holder in (3, 7):
            rows = kept.merge[context & (kept.anchors // CELLS == holder)]
            reached = (rows > 0).any(dim=0).nonzero().squeeze(-1).tolist()
            assert sorted(reached) == sorted(set(range(recording.tokens)) - set(salient.tolist()))
            assert ((rows > 0).sum(dim=0) <= 1).all()
        own = kept.merge[torch.arange(40), kept.anchors]
        assert (own >= 0.6).all()


def test_fastvid_without_a_class_token_goes_by_received_attention() -> None:
    recording = video(0, 4, units=1)
    assert recording.received_attention is not None
    bare = dataclasses.replace(recording, cls_attention=None)
    (decision,) = run(shared("fastvid", {"context_share": 0.0}), bare, Budget(tokens=8), NO_CLS)
    best = recording.received_attention.view(4, CELLS).topk(2).indices + torch.arange(4)[:, None] * CELLS
    assert decision.units[0].anchors.tolist() == best.flatten().sort().values.tolist()


def test_fastvid_takes_the_frames_features_from_the_caller() -> None:
    recording = video(0, 4, units=1)
    pruner = shared("fastvid", {"segments": 2, "threshold": -2.0})
    (stop,) = pruner.plan(FACTS, Budget(tokens=24), recording.tokens)
    features = torch.eye(3)[[0, 1, 1, 1]][None]
    (kept,) = at(stop, pruner, recording, {"frame_features": features}).units
    assert kept.labels is not None
    holders = {int(row) // CELLS for row, label in zip(kept.anchors, kept.labels, strict=True) if label == "context"}
    assert holders == {0, 3}


# --- HoliTom ------------------------------------------------------------------------------------------------------


def test_holitom_shows_a_still_scene_once() -> None:
    recording = video(0, 8)
    pruner = shared("holitom", {"inner_rate": 0.0})
    windows = pruner.windows(dual.by_frame(recording.projected, 8)[0], None)  # type: ignore[attr-defined, arg-type]
    assert windows.spans == ((0, 3), (4, 7))
    assert windows.saved == 2 * 3 * (CELLS - GRID[1])
    left = recording.tokens - windows.saved
    (decision,) = run(pruner, recording, Budget(tokens=left))
    for kept in decision.units:
        assert kept.merge is not None
        static = torch.tensor([label == "static" for label in kept.labels or ()])
        assert ((kept.merge[static] > 0).sum(dim=-1) == 4).all()  # the mean of a cell over its window
        assert ((kept.merge > 0).sum(dim=0) == 1).all()  # nothing is lost


def test_holitom_raises_tau_only_as_far_as_the_budget_needs() -> None:
    recording = video(0, 8)
    cells = dual.by_frame(recording.projected, 8)[0]  # type: ignore[arg-type]
    pruner = shared("holitom")
    for keep in range(40, recording.tokens + 1, 4):
        windows = pruner.windows(cells, keep)  # type: ignore[attr-defined]
        assert recording.tokens - windows.saved >= keep
        similar = windows.similar
        free = pruner.windows(cells, None)  # type: ignore[attr-defined]
        assert (similar <= free.similar).all()
        if recording.tokens - free.saved >= keep:
            assert torch.equal(similar, free.similar)


def test_holitom_inner_merge_is_a_mean_and_by_halves_as_published() -> None:
    recording = dataclasses.replace(
        video(0, 1, units=1),
        hidden=torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * (CELLS - 3))[None],
        attention={"last": torch.arange(CELLS, 0, -1.0)[None, None, None]},
    )
    keep = torch.zeros(CELLS)
    keep[[0, 1, 2]] = 1 / 3
    published = torch.zeros(CELLS)
    published[[0, 1, 2]] = torch.tensor([0.25, 0.25, 0.5])
    reordered = torch.arange(CELLS, 0, -1.0)
    reordered[[1, 2]] = 0.0
    recording = dataclasses.replace(recording, attention={"last": reordered[None, None, None]})
    stop = Stop(Site("layer", 4), Budget(tokens=CELLS - 2))
    for options, row in (({}, keep), ({"published": True, "inner_rate": 2 / CELLS}, published)):
        (kept,) = at(stop, shared("holitom", options), recording).units
        assert kept.merge is not None
        torch.testing.assert_close(kept.merge[0], row)


# --- PruneVid -----------------------------------------------------------------------------------------------------


def test_prunevid_merges_the_most_static_cells_first() -> None:
    recording = video(0, 8)
    pruner = shared("prunevid", {"alpha": 1.0})
    saved = 2 * 3 * (CELLS - GRID[1])
    for keep in (recording.tokens - saved, recording.tokens - 6):
        (decision,) = run(pruner, recording, Budget(tokens=keep))
        for kept in decision.units:
            assert kept.merge is not None
            static = torch.tensor([label == "static" for label in kept.labels or ()])
            assert int(static.sum()) == (recording.tokens - keep) // 3
            assert (kept.anchors[static] % CELLS >= GRID[1]).all()  # the changing row is never static


def test_prunevid_chooses_inside_the_sets_of_its_first_cut() -> None:
    recording = video(0, 8)
    pruner = shared("prunevid")
    inside, later = pruner.plan(FACTS, Budget(tokens=20), recording.tokens)
    assert (inside.keep(96), later.keep(96)) == (50, 20)
    assert later.kv_from == 0
    assert inside.kv_from is None
    state: State = {}
    at(inside, pruner, recording, state)
    groups = [group.tolist() for group in state["groups"].values()]
    decision = at(later, pruner, recording, state)
    for kept, group in zip(decision.units, groups, strict=True):
        for number in set(group):
            size, taken = group.count(number), sum(group[row] == number for row in kept.anchors.tolist())
            assert abs(taken - 20 * size / 96) <= 1
    without = at(later, pruner, recording, {})  # each frame a set
    for kept in without.units:
        assert set((kept.anchors // CELLS).bincount(minlength=8).tolist()) <= {2, 3}


def test_prunevid_scores_without_padding_rows() -> None:
    recording = video(0, 2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    padded = dataclasses.replace(recording, masks={"text": mask})
    short = dataclasses.replace(
        recording, queries_nope={name: rows[:, :, :3] for name, rows in recording.queries_nope.items()}
    )
    pruner = shared("prunevid")
    stop = pruner.plan(FACTS, Budget(tokens=6), recording.tokens)[-1]
    assert_same(
        Decision((at(stop, pruner, padded).units[1],)),
        Decision((at(stop, pruner, short).units[1],)),
    )


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1]),
        ([0, 0, 2, 1, 1], [0, 0, 0, 1, 1]),  # a tie goes left
        ([0, 0, 2, 1, 1, 1], [0, 0, 1, 1, 1, 1]),
        ([0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]),  # only the longest run of a label stays
        ([0, 0, 1, 0, 0], [0, 0, 0, 0, 0]),  # both of two equal ones stay
        ([0, 3, 3, 0, 1, 1, 1, 2, 2, 2], [3, 3, 3, 3, 1, 1, 1, 2, 2, 2]),  # a run counts with what has joined it
        ([1, 1, 4, 2, 2, 2, 5, 3, 3, 3, 3], [1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]),
        ([0, 0, 1, 0, 0, 4, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2]),  # two runs and their gap are one run
        ([1, 1, 4, 5, 2, 2, 2], [1, 1, 2, 2, 2, 2, 2]),  # a gap is filled as a whole
        ([4, 1, 1, 5], [1, 1, 1, 1]),
        ([3, 0, 0], [0, 0, 0]),
        ([0, 1, 2], [0, 0, 0]),
        ([4], [4]),
    ],
)
def test_windows_are_runs(labels: list[int], wanted: list[int]) -> None:
    assert refined(labels) == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=14))
def test_refined_labels_change_nothing_more(labels: list[int]) -> None:
    found = refined(labels)
    assert len(found) == len(labels)
    assert set(found) <= set(labels)
    spans = dual.runs(found)
    assert len(spans) == 1 or all(last > first for first, last in spans)
