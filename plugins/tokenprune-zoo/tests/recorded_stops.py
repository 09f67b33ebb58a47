"""What the tests of the zoo share: methods by name, at one stop or at all of their stops, on recorded tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenprune import Budget
from tokenprune.plugins import default_host
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, State, Stop
from tokenprune.testing import RecordedView, Recording
from tokenprune.testing.conformance.plan_run import film

DEEP = ModelFacts("recorded", num_layers=32, encoder_layers=24, has_cls=True, encoder_read_layer=22)
SHALLOW = ModelFacts("recorded", num_layers=6, encoder_layers=5, has_cls=True, encoder_read_layer=3)
#: For videos.
FACTS = ModelFacts("recorded", num_layers=8, encoder_layers=5, has_cls=True, encoder_read_layer=3)
NO_CLS = dataclasses.replace(FACTS, has_cls=False)
#: The shape of `random_llava(layers=6)`.
RANDOM_LLAVA = ModelFacts("llava", num_layers=6, encoder_layers=3, has_cls=True, encoder_read_layer=1)
#: The token grid of a frame.
GRID = (3, 4)
CELLS = GRID[0] * GRID[1]


def build(name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """An installed pruner."""
    return default_host().pruners.get(name).build({**(options or {}), **more})


def look(
    pruner: Pruner, recording: Recording, keep: int, site: Site, *, facts: ModelFacts = SHALLOW, indices: Any = None
) -> RecordedView:
    """What a pruner sees of a recording, at a site."""
    view = RecordedView(recording, keep, pruner.spec.needs, site=site, facts=facts)
    if indices is not None:
        view.indices = lambda: indices  # type: ignore[method-assign]
    return view


def decide(pruner: Pruner, view: RecordedView, state: State | None = None) -> Decision:
    """The decision on a view."""
    return pruner.decide(view, Stop(view.site, Budget(tokens=max(1, view.keep))), {} if state is None else state)


def at(
    stop: Stop, pruner: Pruner, recording: Recording, state: State | None = None, facts: ModelFacts = FACTS
) -> Decision:
    """The decision at a stop, on the whole recording."""
    keep = min(recording.tokens, stop.keep(recording.tokens))
    view = RecordedView(recording, keep, pruner.spec.needs, site=stop.site, facts=facts)
    return pruner.decide(view, stop, {} if state is None else state)


def run(pruner: Pruner, recording: Recording, budget: Budget, facts: ModelFacts = FACTS) -> list[Decision]:
    """Every stop on the whole recording, with the state of the stops before it."""
    state: State = {}
    return [at(stop, pruner, recording, state, facts) for stop in pruner.plan(facts, budget, recording.tokens)]


def prefill(stops: Sequence[Stop]) -> list[Stop]:
    """The stops of a prefill."""
    return [stop for stop in stops if stop.site.kind != "decode"]


def video(seed: int, frames: int, *, units: int = 2) -> Recording:
    """Videos of two scenes, each a still background in which one row of tokens changes."""
    return film(seed, units, frames)


def assert_legal(decision: Decision, units: int, tokens: int, keep: int) -> None:
    """Distinct rows in range; merged rows are means with their own token among them; weights of at least one token."""
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
    """The same rows, merged and weighed alike."""
    assert len(first.units) == len(second.units)
    for one, other in zip(first.units, second.units, strict=True):
        assert one.anchors.tolist() == other.anchors.tolist()
        for left, right in ((one.merge, other.merge), (one.log_weights, other.log_weights)):
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                torch.testing.assert_close(left, right)
