"""iLLaVA, MustDrop and TopV: cuts inside the vision encoder or in the middle of a decoder layer."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stops import (
    DEEP,
    SHALLOW,
    build,
    decide,
    look,
)

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.pruner import Kept, Site
from tokenprune.testing import RecordedView, Recording, random_recording


def test_illava_splits_the_budget_as_published() -> None:
    facts = dataclasses.replace(DEEP, encoder_layers=24, encoder_read_layer=22)
    stops = build("illava").plan(facts, Budget(tokens=250), 729)  # 729 x 0.7^3
    assert [str(stop.site) for stop in stops] == ["tower:5.mid", "tower:6.mid", "tower:7.mid", "tower:8.mid", "layer:8"]
    counts = [729, *(stop.keep(729) for stop in stops)]
    assert all(abs(before - after - 92) <= 1.5 for before, after in itertools.pairwise(counts[:-1]))
    assert counts[-1] / counts[-2] == pytest.approx(0.7, abs=0.005)
    average = build("illava").plan(facts, Budget(tokens=250, account="average"), 729)
    entering, last = average[-2].keep(729), average[-1].keep(729)
    assert (8 * entering + 24 * last) / 32 == pytest.approx(250, abs=0.5)
    assert [str(stop.site) for stop in build("illava", vision=False).plan(facts, Budget(tokens=250), 729)] == [
        "layer:8"
    ]
    shallow = build("illava").plan(SHALLOW, Budget(tokens=9), 48)
    assert [str(stop.site) for stop in shallow] == ["tower:1.mid", "tower:2.mid", "layer:2"]
    with pytest.raises(IncompatibleError, match="the projector reads layer 3"):
        build("illava", layer=2, relative=False).plan(SHALLOW, Budget(tokens=9), 48)
    with pytest.raises(ConfigError, match="growing layer numbers >= 0"):
        build("illava", vision_layers=(6, 5)).plan(DEEP, Budget(tokens=9), 48)


@pytest.mark.parametrize("published", [False, True])
def test_illava_folds_what_the_encoder_layer_attends_to_least(published: bool) -> None:
    received = torch.tensor([[0.3, 0.1, 0.2, 0.5, 0.4, 0.05]])
    pruner = build("illava", published=published)
    view = look(pruner, Recording(tokens=6, received_attention=received), 3, Site("tower", 1, "mid"))
    (kept,) = decide(pruner, view).units
    assert kept.anchors.tolist() == [0, 3, 4]  # 0 is the best of the folded 0, 2, 1, 5
    weights = torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0, 4.0] if published else [4.0, 2.0, 3.0, 0.0, 0.0, 1.0]) / 10
    assert kept.merge is not None
    torch.testing.assert_close(kept.merge[0], weights)
    torch.testing.assert_close(kept.merge[1:], torch.eye(6)[[3, 4]])


def test_illava_needs_the_encoder_only_where_it_cuts_there() -> None:
    assert build("illava").needs == ("attention", "encoder_attention")
    assert build("illava", vision=False).needs == ("attention",)
    assert build("mustdrop", vision=False).needs == ("attention", "encoder_attention")


@pytest.mark.parametrize("name", ["tome", "illava", "mustdrop"])
def test_an_encoder_that_is_not_described_is_refused(name: str) -> None:
    closed = dataclasses.replace(SHALLOW, encoder_layers=0, encoder_read_layer=0, has_cls=False)
    with pytest.raises(IncompatibleError, match="does not describe") as caught:
        build(name).plan(closed, Budget(tokens=9), 48)
    assert caught.value.hint


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(1, 2))
def test_window_similarity_is_the_mean_cosine_of_the_pairs(seed: int, rows: int, columns: int, frames: int) -> None:
    tokens = frames * rows * columns
    hidden = torch.randn(2, tokens, 5, generator=torch.Generator().manual_seed(seed))
    pruner = build("mustdrop")
    recording = Recording(tokens=tokens, hidden=hidden, grid=(rows, columns), frames=frames)
    similarity, members = pruner.window_similarity(look(pruner, recording, 1, Site("tower", 1)))
    windows: dict[tuple[int, int, int], list[int]] = {}
    for token in range(tokens):
        frame, cell = divmod(token, rows * columns)
        windows.setdefault((frame, cell // columns // 3, cell % columns // 3), []).append(token)
    assert [row.nonzero().squeeze(-1).tolist() for row in members] == [windows[key] for key in sorted(windows)]
    for number, key in enumerate(sorted(windows)):
        pairs = list(itertools.combinations(windows[key], 2))
        for unit in range(2):
            if not pairs:
                assert float(similarity[unit, number]) < -1.0
                continue
            cosines = [torch.cosine_similarity(hidden[unit, i], hidden[unit, j], dim=0) for i, j in pairs]
            assert float(similarity[unit, number]) == pytest.approx(float(sum(cosines)) / len(pairs), abs=1e-5)


def windows_view(pruner: Any, keep: int) -> RecordedView:
    """6 x 6 tokens in four windows: random, opposite in pairs, all equal, nearly equal."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(36, 16, generator=generator)
    base = torch.randn(16, generator=generator)
    hidden = noise.clone()
    for token in range(36):
        row, column = divmod(token, 6)
        window = row // 3 * 2 + column // 3
        hidden[token] = (noise[token], noise[0] * (-1) ** token, base, base + 0.1 * noise[token])[window]
    return look(pruner, Recording(tokens=36, hidden=hidden[None], grid=(6, 6)), keep, Site("tower", 1))


def test_mustdrop_merges_like_windows_down_to_the_next_count() -> None:
    pruner = build("mustdrop")
    (both,) = decide(pruner, windows_view(pruner, 20)).units
    assert len(both.anchors) == 36 - 2 * 8
    assert both.anchors.tolist() == sorted(both.anchors.tolist())
    assert {32, 35} <= set(both.anchors.tolist())  # the last tokens of both windows
    assert both.merge is not None
    torch.testing.assert_close(both.merge.sum(dim=-1), torch.ones(20))
    assert int((both.merge > 0).sum(dim=-1).amax()) == 9
    (one,) = decide(pruner, windows_view(pruner, 21)).units  # two windows would leave 20
    assert len(one.anchors) == 28
    assert 32 in one.anchors.tolist()
    (none,) = decide(pruner, windows_view(pruner, 29)).units
    assert none.merge is None
    assert none.anchors.tolist() == list(range(36))
    published = build("mustdrop", published=True)
    (free,) = decide(published, windows_view(published, 36)).units
    assert free.anchors.tolist()[:2] == [32, 35]  # windows first, the most alike first
    assert len(free.anchors) == 20
    everything = build("mustdrop", window_threshold=-1.0, published=True)
    assert len(decide(everything, windows_view(everything, 1)).units[0].anchors) == 4


def test_mustdrop_protects_once_and_by_original_index() -> None:
    pruner, state = build("mustdrop", protected_share=0.2), {}
    attention = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1]])
    first = look(pruner, Recording(tokens=10, cls_attention=attention[:, None]), 5, Site("layer", 1))
    assert pruner.protected(first, state)[0].nonzero().squeeze(-1).tolist() == [1, 4]
    other = look(pruner, Recording(tokens=5, cls_attention=attention[:, None, :5]), 5, Site("layer", 1))
    other.ids = lambda: (1,)  # type: ignore[method-assign] - a unit of another size, in a view of its own
    assert pruner.protected(other, state)[0].nonzero().squeeze(-1).tolist() == [1]
    left = torch.tensor([[1, 2, 4, 9]])
    later = Recording(tokens=4, cls_attention=torch.tensor([[[0.1, 0.9, 0.2, 0.9]]]))
    second = look(pruner, later, 2, Site("layer", 2), indices=left)
    assert pruner.protected(second, state).tolist() == [[True, False, True, False]]
    assert pruner.protected(second, {}).tolist() == [[False, True, False, False]]  # the share of what is there
    both = Recording(tokens=4, cls_attention=later.cls_attention.expand(2, -1, -1))
    beside = look(pruner, both, 2, Site("layer", 2), indices=left.expand(2, -1))
    beside.ids = lambda: (0, 7)  # type: ignore[method-assign] - a known unit beside one that is seen first here
    assert pruner.protected(beside, state).tolist() == [[True, False, True, False], [False, True, False, False]]


def test_mustdrop_plans_its_reach_and_needs_a_second_encoder_layer() -> None:
    stops = build("mustdrop").plan(DEEP, Budget(tokens=64), 576)
    assert [str(stop.site) for stop in stops] == ["tower:1", "layer:3", "layer:7", "layer:11", "layer:15"]
    assert [stop.kv_from for stop in stops] == [None, None, None, None, 2]
    assert [stop.auto for stop in stops] == [True, False, False, False, False]
    assert stops[0].budget == stops[1].budget
    assert all(stop.auto for stop in build("mustdrop", published=True).plan(DEEP, Budget(tokens=64), 576))
    with pytest.raises(IncompatibleError, match="the projector reads layer 0"):
        build("mustdrop").plan(dataclasses.replace(SHALLOW, encoder_read_layer=0), Budget(tokens=9), 48)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava(layers=6)


@pytest.mark.parametrize("options", [{}, {"window_threshold": -1.0}, {"window_threshold": 0.3}])
def test_mustdrop_meets_the_count_whatever_the_windows_merge(options: dict[str, Any], model: Any) -> None:
    samples = [prompt(1), prompt(2, text=9), prompt(3, images=2)]
    with torch.no_grad(), pruned(model, build("mustdrop", **options), tokens=4) as session:
        model.generate(**batch(samples), max_new_tokens=3, do_sample=False)
    record = session.records[0]
    assert record.final() == (4, 4, 8)
    if options.get("window_threshold") == -1.0:
        assert max(record.entering()) < 2 * TOKENS
        assert record.entering()[0] < TOKENS
    assert [row[0] for row in record.kv_visual_tokens] == [4, 4, 8]  # the last cut reaches back to layer 0


def test_topv_reads_both_points_of_its_layer() -> None:
    pruner = build("topv")
    (stop,) = pruner.plan(DEEP, Budget(tokens=64), 576)
    assert str(stop.site) == "layer:2.mid"
    recording = random_recording(seed=1)
    scores = []
    for changed in ({}, {"layer_input": "projected"}, {"mlp_input": "projected"}, {"hidden": "projected"}):
        values = {"layer_input": recording.hidden} | {key: getattr(recording, name) for key, name in changed.items()}
        view = look(pruner, dataclasses.replace(recording, **values), 9, stop.site)
        scores.append(pruner.score(view))
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])
    torch.testing.assert_close(scores[0], scores[3])  # the residual stream itself is not read


def test_kept_is_what_a_decision_holds() -> None:
    """A view of one token, at every method of this file that selects in the encoder."""
    recording = Recording(
        tokens=1,
        hidden=torch.ones(1, 1, 4),
        grid=(1, 1),
        encoder_keys=torch.ones(1, 2, 1, 3),
        received_attention=torch.ones(1, 1),
    )
    for name in ("tome", "illava", "mustdrop"):
        (kept,) = decide(build(name), look(build(name), recording, 1, Site("tower", 1, "mid"))).units
        assert isinstance(kept, Kept)
        assert kept.anchors.tolist() == [0]
