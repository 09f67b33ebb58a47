"""ToMe: counts, bipartite matching written out by hand, and the whole tower written out by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stops import (
    DEEP,
    RANDOM_LLAVA,
    SHALLOW,
    assert_legal,
    assert_same,
    build,
    decide,
    look,
)
from torch import Tensor

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError, ConfigError
from tokenprune.pruner import Decision, Site
from tokenprune.testing import Recording, random_recording
from tokenprune.testing.conformance.plan_run import all_equal, all_zero


@pytest.mark.thorough
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 30), st.sampled_from(["constant", "decreasing"]))
def test_tome_counts_end_at_the_budget_and_never_more_than_halve(
    tokens: int, keep: int, layers: int, schedule: str
) -> None:
    keep = min(keep, tokens)
    facts = dataclasses.replace(DEEP, encoder_read_layer=layers - 1)
    useful = layers if schedule == "constant" else layers - 1  # the last layer of a falling schedule merges nothing
    floor = tokens
    for _ in range(useful):
        floor = math.ceil(floor / 2)
    pruner = build("tome", schedule=schedule)
    if keep < floor:
        with pytest.raises(BudgetError, match=f"cannot go under {floor} of {tokens} tokens"):
            pruner.plan(facts, Budget(tokens=keep), tokens)
        return
    stops = pruner.plan(facts, Budget(tokens=keep), tokens)
    counts = [tokens, *(stop.keep(tokens) for stop in stops)]
    assert counts[-1] == keep
    assert all(after <= before <= 2 * after for before, after in itertools.pairwise(counts))
    assert all(stop.site == Site("tower", stop.site.layer, "mid") for stop in stops)
    assert (not stops) == (keep == tokens)
    assert not stops or stops[-1].site.layer == layers - 1


def test_tome_schedules() -> None:
    constant = [stop.keep(576) for stop in build("tome").plan(DEEP, Budget(tokens=192), 576)]
    steps = [before - after for before, after in itertools.pairwise([576, *constant])]
    assert set(steps) <= {16, 17}
    assert len(steps) == 23
    falling = build("tome", schedule="decreasing").plan(DEEP, Budget(tokens=192, account="average"), 576)
    steps = [before - after for before, after in itertools.pairwise([576, *(stop.keep(576) for stop in falling)])]
    assert all(after <= before + 1 for before, after in itertools.pairwise(steps))
    assert steps[0] > 30 > 2 > steps[-1]
    assert sum(steps) == 576 - 192
    strongest = [stop.keep(576) for stop in build("tome").plan(DEEP, Budget(tokens=1), 576)]
    assert strongest[-1] == 1
    with pytest.raises(ConfigError):
        build("tome", schedule="cosine")


def merged_by_hand(keys: Tensor, sizes: list[float], cls: bool, gone: int) -> tuple[list[int], dict[int, int]]:
    """Emitted anchors of one unit, and the target of each merged token; keys (N, d) are the head mean."""
    shift = int(cls)
    sources = [j for j in range(len(keys)) if (j + shift) % 2 == 0]
    targets = [j for j in range(len(keys)) if (j + shift) % 2 == 1]
    unit = keys / keys.norm(dim=-1, keepdim=True)
    match = {i: max(targets, key=lambda j: (float(unit[i] @ unit[j]), -j)) for i in sources}
    ranked = sorted(sources, key=lambda i: (-float(unit[i] @ unit[match[i]]), i))
    staying = sorted(ranked[gone:]) if cls else ranked[gone:]
    return staying + targets, {i: match[i] for i in ranked[:gone]}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 15), st.booleans(), st.data())
def test_tome_is_bipartite_matching_by_hand(seed: int, tokens: int, cls: bool, data: Any) -> None:
    gone = data.draw(st.integers(1, tokens // 2))
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 3, tokens, 4, generator=generator)
    sizes = torch.randint(1, 5, (2, tokens), generator=generator).float()
    view = look(
        build("tome"),
        Recording(tokens=tokens, encoder_keys=keys, sizes=sizes),
        tokens - gone,
        Site("tower", 0, "mid"),
        facts=dataclasses.replace(SHALLOW, has_cls=cls),
    )
    for unit, kept in enumerate(decide(build("tome"), view).units):
        anchors, into = merged_by_hand(keys[unit].mean(dim=0), sizes[unit].tolist(), cls, gone)
        assert kept.anchors.tolist() == anchors
        assert kept.merge is not None
        assert kept.log_weights is not None
        for row, anchor in enumerate(anchors):
            members = [anchor, *(source for source, target in into.items() if target == anchor)]
            total = sum(float(sizes[unit, member]) for member in members)
            weights = torch.zeros(tokens)
            weights[members] = sizes[unit, members] / total
            torch.testing.assert_close(kept.merge[row], weights)
            assert float(kept.log_weights[row].exp() * sizes[unit, anchor]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"schedule": "decreasing"}, {"proportional": False}])
@pytest.mark.parametrize("cls", [True, False])
def test_tome_runs_through_its_stops(cls: bool, options: dict[str, Any]) -> None:
    """Stop by stop: exact counts, all sizes accounted for, raster order at the end; a unit alone gives the same."""
    pruner, facts = build("tome", **options), dataclasses.replace(SHALLOW, has_cls=cls)
    given_tokens = random_recording(seed=3, units=3)
    short = all_zero(given_tokens), all_equal(given_tokens), given_tokens.to(torch.bfloat16)
    for recording in (given_tokens, *short):
        indices, sizes = torch.arange(48).expand(3, -1), torch.ones(3, 48)
        keys = recording.encoder_keys
        assert keys is not None
        for stop in pruner.plan(facts, Budget(tokens=9), 48):
            present = Recording(tokens=indices.shape[1], encoder_keys=keys, sizes=sizes)
            view = look(pruner, present, stop.keep(48), stop.site, facts=facts, indices=indices)
            decision = decide(pruner, view)
            assert_legal(decision, 3, view.tokens, stop.keep(48))
            alone = look(pruner, present.unit(1), stop.keep(48), stop.site, facts=facts, indices=indices[1:2])
            if recording is given_tokens:
                assert_same(decide(pruner, alone), Decision((decision.units[1],)))
            merge = torch.stack([kept.merge for kept in decision.units if kept.merge is not None] or [torch.zeros(0)])
            anchors = torch.stack([kept.anchors for kept in decision.units])
            if merge.numel():
                owner = (merge > 0).float()
                sizes = (owner @ sizes.unsqueeze(-1)).squeeze(-1)
                keys = keys.gather(2, anchors[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))
                assert all((kept.log_weights is None) == ("proportional" in options) for kept in decision.units)
            indices = indices.gather(1, anchors)
        assert sizes.sum(dim=-1).tolist() == [48.0] * 3
        assert torch.equal(indices, indices.sort(dim=-1).values)


def tower_by_hand(model: Any, pixels: Tensor, counts: dict[int, int], read: int) -> Tensor:
    """Output of encoder layer `read` for one image, with ToMe written out on the stock modules, in raster order.

    Args:
        model: A random LLaVA.
        pixels: (1, 3, side, side).
        counts: Patches left after each layer.
        read: The layer.
    """
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))[0]
    sizes, places = torch.ones(len(hidden)), torch.arange(len(hidden) - 1)
    for index in range(read + 1):
        layer = tower.encoder.layers[index]
        normed = layer.layer_norm1(hidden)
        query, key, value = (
            getattr(layer.self_attn, f"{name}_proj")(normed).unflatten(-1, (4, -1)).transpose(0, 1) for name in "qkv"
        )
        logits = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1]) + sizes.log()
        hidden = hidden + layer.self_attn.out_proj((logits.softmax(-1) @ value).transpose(0, 1).flatten(1))
        gone = len(places) - counts[index]
        if gone:
            anchors, into = merged_by_hand(key.mean(dim=0)[1:], sizes.tolist(), True, gone)
            rows, weights = [hidden[0]], [torch.ones(())]
            for anchor in anchors:
                members = [1 + anchor, *(1 + source for source, target in into.items() if target == anchor)]
                weights.append(sizes[members].sum())
                rows.append((hidden[members] * sizes[members, None]).sum(dim=0) / weights[-1])
            hidden, sizes, places = torch.stack(rows), torch.stack(weights), places[anchors]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden[1:][places.argsort()]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava(layers=6)


@pytest.mark.parametrize("keep", [4, 6, 11])
def test_tome_in_a_model_is_tome_written_out(keep: int, model: Any) -> None:
    inputs, pruner, seen = batch([prompt(5)]), build("tome"), []
    stops = pruner.plan(RANDOM_LLAVA, Budget(tokens=keep), TOKENS)
    counts = {stop.site.layer: stop.keep(TOKENS) for stop in stops}
    with torch.no_grad(), pruned(model, pruner, tokens=keep) as session:
        projector = model.model.multi_modal_projector
        handle = projector.linear_1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    with torch.no_grad():
        expected = tower_by_hand(model, inputs["pixel_values"], counts, read=1)
    torch.testing.assert_close(seen[0].reshape(-1, 32)[:keep], expected, atol=1e-4, rtol=1e-4)
    assert session.last.entering() == session.last.final() == (keep,)
    assert session.last.layer_average() == (float(keep),)
