"""Methods that cut inside the vision encoder or in the middle of a decoder layer, and their calibration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenprune_zoo import FitPrune
from torch import Tensor

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tests.plugins_zoo.test_every_pruner import all_tokens, assert_legal, assert_same
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError
from tokenprune.plugins import load_host
from tokenprune.pruner import Decision, Kept, ModelFacts, Prefill, Pruner, Site, Stop
from tokenprune.testing import RecordedView, Recording, random_recording

DEEP = ModelFacts("recorded", num_layers=32, encoder_layers=24, has_cls=True, encoder_read_layer=22)
SHALLOW = ModelFacts("recorded", num_layers=6, encoder_layers=5, has_cls=True, encoder_read_layer=3)

#: The shape of the model below.
RANDOM_LLAVA = ModelFacts("llava", num_layers=6, encoder_layers=3, has_cls=True, encoder_read_layer=1)


def build(name: str, **options: Any) -> Any:
    return load_host().pruners.get(name).build(options)


def look(
    pruner: Pruner, recording: Recording, keep: int, site: Site, *, facts: ModelFacts = SHALLOW, indices: Any = None
) -> RecordedView:
    view = RecordedView(recording, keep, pruner.spec.needs, site=site, facts=facts)
    if indices is not None:
        view.indices = lambda: indices  # type: ignore[method-assign]
    return view


def decide(pruner: Pruner, view: RecordedView, state: dict[str, Any] | None = None) -> Decision:
    return pruner.decide(view, Stop(view.site, Budget(tokens=max(1, view.keep))), {} if state is None else state)


# --- ToMe -------------------------------------------------------------------------------------------------------------


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
    short = all_tokens(given_tokens, zero=True), all_tokens(given_tokens, zero=False), given_tokens.to(torch.bfloat16)
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


# --- iLLaVA -----------------------------------------------------------------------------------------------------------


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


# --- MustDrop ---------------------------------------------------------------------------------------------------------


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


# --- FitPrune and its calibration -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8), st.floats(0.0, 1.0), st.floats(0.1, 2.0))
def test_deletable_is_the_largest_prefix_that_leaves_enough(
    masses: list[float], tolerance: float, reference: float
) -> None:
    mass = torch.tensor([masses])
    gone = FitPrune.deletable(mass, torch.tensor([reference]), tolerance)[0]
    order = sorted(range(len(masses)), key=lambda token: (masses[token], token))
    assert set(gone.nonzero().squeeze(-1).tolist()) == set(order[: int(gone.sum())])
    enough, slack = (1.0 - tolerance) * reference, 1e-5
    left = [sum(masses) - sum(masses[token] for token in order[:count]) for count in range(len(masses) + 1)]
    count = int(gone.sum())
    assert count == 0 or left[count] >= enough - slack
    assert count == len(masses) or left[count + 1] < enough + slack


@dataclass(frozen=True)
class OnModel:
    """A calibrator of the tests: one prompt at a time on a random model."""

    model: Any
    prompts: tuple[Any, ...]
    facts: ModelFacts = RANDOM_LLAVA
    tokens: int = TOKENS

    def run(self, pruner: Pruner, budget: Budget) -> list[Prefill]:
        found = []
        for inputs in self.prompts:
            with torch.no_grad(), pruned(self.model, pruner, budget) as session:
                logits = self.model(**inputs).logits[0, -1]
            found.append(Prefill(session.last, logits))
        return found


@pytest.fixture(scope="module")
def calibrator(model: Any) -> OnModel:
    return OnModel(model, tuple(batch([prompt(seed)]) for seed in (1, 2, 3)))


def eager_masses(model: Any, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Self and cross mass of every visual token in every layer of the unpruned model, from its own attentions."""
    stock = random_llava("eager", layers=6)
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        attentions = stock(**inputs, output_attentions=True).attentions
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    after = torch.arange(int(slots[-1]) + 1, inputs["input_ids"].shape[1])
    largest = [layer[0].amax(dim=0)[:, slots] for layer in attentions]
    return [(rows[slots].mean(dim=0), rows[after].mean(dim=0)) for rows in largest]


def test_the_references_of_a_calibration_are_the_masses_of_the_unpruned_model(calibrator: OnModel, model: Any) -> None:
    from tokenprune_zoo.fitprune import _Noting

    noting = _Noting()
    calibrator.run(noting, Budget(ratio=1.0))
    assert len(noting.references) == 3
    for noted, inputs in zip(noting.references, calibrator.prompts, strict=True):
        for layer, both in enumerate(eager_masses(model, inputs)):
            (found,) = (value for (_, at), value in noted.items() if at == layer)
            torch.testing.assert_close(found, torch.stack([mass.sum() for mass in both]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("account", "tokens"),
    [
        ("average", 6),
        ("kept", 3),
        pytest.param("average", 10, marks=pytest.mark.thorough),
        pytest.param("kept", 8, marks=pytest.mark.thorough),
    ],
)
def test_a_calibrated_table_meets_its_budget_and_less_tolerance_would_not(
    account: Any, tokens: int, calibrator: OnModel, model: Any
) -> None:
    from tokenprune_zoo.fitprune import _Noting, _Trial

    budget = Budget(tokens=tokens, account=account)
    found = build("fitprune").calibrate(calibrator, budget)
    table = found["tables"][str(tokens)]
    assert len(table) == 6
    assert all(type(count) is int for count in table)
    tabled = build("fitprune", **found)
    with torch.no_grad(), pruned(model, tabled, budget) as session:
        model(**batch([prompt(9), prompt(1)]))
    record = session.last
    measured = record.final() if account == "kept" else record.layer_average()
    assert max(measured) <= tokens
    # a tolerance finer than the search's gives the table; the next smaller one of the search misses the budget
    noting = _Noting()
    calibrator.run(noting, Budget(ratio=1.0))

    def scheme(step: int) -> tuple[int, ...]:
        trial = _Trial(tolerance=step / 128, references=tuple(noting.references), budget=budget)
        runs = [prefill.record.units for prefill in calibrator.run(trial, Budget(ratio=1.0))]
        return tuple(sum(units[layer].before - units[layer].kept for units in runs) // len(runs) for layer in range(6))

    def left(deleted: tuple[int, ...]) -> float:
        sizes = [TOKENS, *(TOKENS - gone for gone in itertools.accumulate(deleted))]
        return sizes[-1] if account == "kept" else sum((a + b) / 2 for a, b in itertools.pairwise(sizes)) / 6

    low, high = 0, 128
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(scheme(middle)) <= tokens else (middle, high)
    assert scheme(high) == tuple(table)
    assert left(scheme(low)) > tokens >= left(tuple(table))


def test_a_calibration_stops_deleting_where_the_budget_is_met(calibrator: OnModel) -> None:
    """Each sample loses at least what the budget asks, and nothing more once it has."""
    from tokenprune_zoo.fitprune import _Noting, _Trial

    noting = _Noting()
    calibrator.run(noting, Budget(ratio=1.0))
    for budget in (Budget(tokens=10), Budget(tokens=10, account="average")):
        trial = _Trial(tolerance=0.6, references=tuple(noting.references), budget=budget)
        for prefill in calibrator.run(trial, Budget(ratio=1.0)):
            met = False
            for layer, unit in enumerate(prefill.record.units):
                assert not met or unit.kept == unit.before
                attended = prefill.record.visual_tokens[0][: layer + 1]
                through = [other.kept for other in prefill.record.units[: layer + 1]]
                ahead = unit.kept * (6 - layer - 1) * 2
                average = (sum(attended) + sum(through) + ahead) / 12
                met = met or (unit.kept if budget.account == "kept" else average) <= 10
            assert met


@pytest.mark.thorough
def test_tables_of_several_budgets_are_kept_side_by_side(calibrator: OnModel) -> None:
    first = build("fitprune").calibrate(calibrator, Budget(tokens=8))
    both = build("fitprune", **first).calibrate(calibrator, Budget(ratio=0.25))
    assert set(both["tables"]) == {"8", "25%"}
    assert both["tables"]["8"] == first["tables"]["8"]


def test_a_target_that_no_table_meets_is_refused_with_the_floor(calibrator: OnModel) -> None:
    with pytest.raises(BudgetError, match="its floor is") as caught:
        build("fitprune").calibrate(calibrator, Budget(tokens=1, account="average"))
    assert caught.value.hint


def test_a_table_is_taken_for_its_budget_only() -> None:
    pruner = build("fitprune", tables={"16": [20, 0, 12]})
    stops = pruner.plan(SHALLOW, Budget(tokens=16), 48)
    assert [(str(stop.site), stop.keep(48)) for stop in stops] == [("layer:0.mid", 28), ("layer:2.mid", 16)]
    solved = pruner.plan(SHALLOW, Budget(tokens=12), 48)
    assert [str(stop.site) for stop in solved] == [f"layer:{layer}.mid" for layer in range(6)]
    assert solved[-1].keep(48) == 12
    with pytest.raises(IncompatibleError, match="deletes 32 tokens"):
        pruner.plan(SHALLOW, Budget(tokens=16), 32)
    with pytest.raises(IncompatibleError, match="in 3 layers"):
        pruner.plan(dataclasses.replace(SHALLOW, num_layers=2), Budget(tokens=16), 48)
    with pytest.raises(BudgetError, match="by the account `average`"):
        pruner.plan(SHALLOW, Budget(tokens=16, account="average"), 48)


# --- VTW --------------------------------------------------------------------------------------------------------------


def test_vtw_finds_the_first_layer_that_changes_little(calibrator: OnModel, model: Any) -> None:
    def divergence(layer: int) -> float:
        total = 0.0
        for inputs in calibrator.prompts:
            with torch.no_grad():
                full = model(**inputs).logits[0, -1].double().log_softmax(-1)
            with torch.no_grad(), pruned(model, build("vtw", layer=layer, relative=False), ratio=1.0):
                cut = model(**inputs).logits[0, -1].double().log_softmax(-1)
            total += float((full.exp() * (full - cut)).sum())
        return total / len(calibrator.prompts)

    found = {layer: divergence(layer) for layer in range(1, 6)}
    for eta in sorted(found.values()):
        option = build("vtw", eta=eta * 1.001).calibrate(calibrator, Budget(ratio=0.5))
        (stop,) = build("vtw", **option).plan(calibrator.facts, Budget(ratio=0.5), TOKENS)
        assert stop.site.layer == min(layer for layer, value in found.items() if value <= eta * 1.001)
    with pytest.raises(IncompatibleError, match="the least is") as caught:
        build("vtw", eta=min(found.values()) * 0.5).calibrate(calibrator, Budget(ratio=0.5))
    assert "eta" in caught.value.hint


def test_what_cannot_be_calibrated_says_so(calibrator: OnModel) -> None:
    assert load_host().pruners.get("fitprune").calibrates == ("tables",)
    assert load_host().pruners.get("vtw").calibrates == ("layer",)
    with pytest.raises(IncompatibleError, match="`tome` has no options to calibrate"):
        build("tome").calibrate(calibrator, Budget(ratio=0.5))


# --- TopV -------------------------------------------------------------------------------------------------------------


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
