"""What each of the video methods promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stops import (
    CELLS,
    FACTS,
    GRID,
    NO_CLS,
    assert_same,
    at,
    build,
    run,
    video,
)
from tokenprune_zoo.prunevid import refined

from tokenprune import Budget, dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Pruner, Site, State, Stop
from tokenprune.testing import RecordedView, Recording


@pytest.mark.parametrize("name", ["fastvid", "holitom"])
def test_density_noise_breaks_ties_and_must_be_long_enough(name: str) -> None:
    distinct = torch.eye(CELLS).repeat(4, 1)[None]  # all cells of a frame equally far from each other
    recording = dataclasses.replace(video(2, 4, units=1), projected=distinct)
    pruner = build(name, {"inner_rate": 0.0} if name == "holitom" else None)
    (stop,) = pruner.plan(FACTS, Budget(tokens=16 if name == "fastvid" else 4), recording.tokens)
    plain = at(stop, pruner, recording)
    noise = torch.arange(1000.0)[None]
    assert at(stop, pruner, recording, {"density_noise": noise}).units[0].anchors.tolist() != (
        plain.units[0].anchors.tolist()
    )
    with pytest.raises(ConfigError, match="are needed"):
        at(stop, pruner, recording, {"density_noise": noise[:, :1]})


def test_evs_keeps_the_first_frame_and_what_changes() -> None:
    recording = video(0, 8)
    (stop,) = build("evs").plan(FACTS, Budget(tokens=CELLS + 2 * GRID[1]), recording.tokens)
    for kept in at(stop, build("evs"), recording).units:
        assert kept.anchors[:CELLS].tolist() == list(range(CELLS))
        changing = kept.anchors[CELLS:] % CELLS < GRID[1]
        at_the_cut = kept.anchors[CELLS:] // CELLS == 4
        assert (changing | at_the_cut).all()
    published = at(stop, build("evs", {"published": True}), recording)
    assert_same(published, at(stop, build("evs"), recording))


def test_evs_under_one_frame_is_spread_evenly_and_published_keeps_the_frame() -> None:
    recording = video(0, 2)
    (stop,) = build("evs").plan(FACTS, Budget(tokens=3), recording.tokens)
    for kept in at(stop, build("evs"), recording).units:
        assert kept.anchors.tolist() == [2, 6, 10]
    for kept in at(stop, build("evs", {"published": True}), recording).units:
        assert kept.anchors.tolist() == list(range(CELLS))


def test_vidcom2_gives_unusual_frames_more() -> None:
    usual = torch.randn(24, generator=torch.Generator().manual_seed(9))
    frames = usual * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0])[:, None]
    noise = 0.3 * torch.randn(2, 8, CELLS, 24, generator=torch.Generator().manual_seed(1))
    recording = dataclasses.replace(video(0, 8), projected=(frames[:, None] + noise).flatten(1, 2))
    (decision,) = run(build("vidcom2"), recording, Budget(tokens=30))
    for kept in decision.units:
        counts = (kept.anchors // CELLS).bincount(minlength=8)
        assert counts.argmax() == 5
        assert counts[5] <= CELLS


def test_dycoke_prunes_with_the_published_proportions() -> None:
    recording = video(0, 8)
    weight = 2 + 0.25 * 6  # two references, six others
    pruner = build("dycoke", {"merging_ratio": 0.75})
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
    pruner = build("dycoke", {"published": True})
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
    pruner, state = build("dycoke"), {}
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
    pruner = build("dycoke")
    assert [stop.keep(100) for stop in pruner.plan(FACTS, Budget(ratio=0.5), 100)] == [50, 15]
    assert [stop.keep(100) for stop in pruner.plan(FACTS, Budget(tokens=50), 100)] == [50, 15]
    assert [str(stop.site) for stop in pruner.plan(FACTS, Budget(ratio=0.5), 100)] == ["input", "decode:1"]
    assert len(pruner.plan(FACTS, Budget(ratio=1.0), 100)) == 1
    assert len(build("dycoke", {"decode_rate": 0.0}).plan(FACTS, Budget(ratio=0.5), 100)) == 1


def test_fastvid_merges_whole_segments_and_rows_are_means() -> None:
    recording = video(0, 8)
    (decision,) = run(build("fastvid", {"segments": 1, "threshold": -2.0}), recording, Budget(tokens=40))
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
    (decision,) = run(build("fastvid", {"context_share": 0.0}), bare, Budget(tokens=8), NO_CLS)
    best = recording.received_attention.view(4, CELLS).topk(2).indices + torch.arange(4)[:, None] * CELLS
    assert decision.units[0].anchors.tolist() == best.flatten().sort().values.tolist()


def test_fastvid_takes_the_frames_features_from_the_caller() -> None:
    recording = video(0, 4, units=1)
    pruner = build("fastvid", {"segments": 2, "threshold": -2.0})
    (stop,) = pruner.plan(FACTS, Budget(tokens=24), recording.tokens)
    features = torch.eye(3)[[0, 1, 1, 1]][None]
    (kept,) = at(stop, pruner, recording, {"frame_features": features}).units
    assert kept.labels is not None
    holders = {int(row) // CELLS for row, label in zip(kept.anchors, kept.labels, strict=True) if label == "context"}
    assert holders == {0, 3}


def test_holitom_shows_a_still_scene_once() -> None:
    recording = video(0, 8)
    pruner = build("holitom", {"inner_rate": 0.0})
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
    pruner = build("holitom")
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
        (kept,) = at(stop, build("holitom", options), recording).units
        assert kept.merge is not None
        torch.testing.assert_close(kept.merge[0], row)


def test_prunevid_merges_the_most_static_cells_first() -> None:
    recording = video(0, 8)
    pruner = build("prunevid", {"alpha": 1.0})
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
    pruner = build("prunevid")
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
    pruner = build("prunevid")
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
