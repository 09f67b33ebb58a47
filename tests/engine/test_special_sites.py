"""What goes beyond one cut entering a layer: merging inside the encoder, caches cut back, decoding steps, videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.engine.models import GRID, IMAGE, TOKENS, batch, prompt, random_llava
from tests.engine.pruners import Alternating, Averaging, ByContent, Ragged, Reaching
from tests.engine.reference import dropped_by_layer, masked_from, positions_of, tower_masked
from tokenprune.budget import Budget
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Decision, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

SAMPLES = [prompt(1), prompt(2, images=2), prompt(3, text=11), prompt(4, images=0, text=5)]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> Any:
    return random_llava(request.param)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def decoded(model: Any, inputs: dict[str, torch.Tensor], count: int = 8) -> Any:
    return model.generate(
        **inputs, max_new_tokens=count, do_sample=False, return_dict_in_generate=True, output_logits=True
    )


def reference(model: Any, inputs: dict[str, torch.Tensor], out: Any) -> torch.Tensor:
    """Logits of the whole generated sequence in one pass, (B, T, V)."""
    extra = out.sequences.shape[1] - inputs["input_ids"].shape[1]
    valid = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(len(out.sequences), extra)], dim=1)
    logits: torch.Tensor = model(
        input_ids=out.sequences,
        pixel_values=inputs["pixel_values"],
        attention_mask=valid,
        position_ids=positions_of(valid),
        use_cache=False,
    ).logits
    return logits


def encoded(model: Any, pixels: torch.Tensor, layer: int, weighted: bool, keep: int) -> torch.Tensor:
    """Projected features of an encoder whose patches are averaged in the middle of a layer, told without hooks."""
    tower = model.model.vision_tower
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    bias = None
    for index, block in enumerate(tower.encoder.layers[:2]):
        attended, _ = block.self_attn(hidden_states=block.layer_norm1(states), attention_mask=bias)
        states = states + attended
        if index == layer:
            means = states[:, 1:].reshape(len(pixels), keep, TOKENS // keep, -1).mean(2)
            states = torch.cat([states[:, :1], means], dim=1)
            sizes = torch.tensor([1.0] + [TOKENS / keep] * keep)
            bias = sizes.log()[None, None, None].expand(len(pixels), 1, 1, -1) if weighted else None
        states = states + block.mlp(block.layer_norm2(states))
    features: torch.Tensor = model.model.multi_modal_projector(states[:, 1:])
    return features


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_rows_merged_inside_the_encoder(model: Any, layer: int, weighted: bool) -> None:
    inputs = batch([SAMPLES[1]])
    chosen = Averaging((f"tower:{layer}.mid",), weighted=weighted, reverse=False)
    seen: list[torch.Tensor] = []
    text = model.model.language_model
    handle = text.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with pruned(model, chosen, tokens=4) as session:
        model(**inputs)
        assert all(unit.merged and unit.kept == 4 for unit in session.last.units)
        assert session.last.visual_tokens[0] == (8, 8, 8, 8)
    handle.remove()
    features = encoded(model, inputs["pixel_values"], layer, weighted, 4)
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].view(2, TOKENS)
    for image in range(2):
        close(seen[0][0, slots[image, ::4]], features[image])


def test_ragged_rows_inside_the_encoder_equal_single_images(model: Any) -> None:
    chosen = Ragged(("tower:0.mid", "tower:1", "layer:2.mid"))
    with pruned(model, chosen, ratio=0.75) as session:
        together = model(**batch(SAMPLES)).logits
        for row, sample in enumerate(SAMPLES):
            close(together[row, -len(sample[0]) :], model(**batch([sample])).logits[0])
    assert len({unit.kept for unit in session.records[0].units}) > 2


@pytest.mark.parametrize("sites", [("layer:2",), ("layer:2.mid",), ("input", "layer:3")], ids="+".join)
@pytest.mark.parametrize("policy", ["keep", "compact"])
def test_caches_cut_back_equal_masked_decoding(model: Any, sites: tuple[str, ...], policy: Any) -> None:
    inputs = batch(SAMPLES)
    chosen = Reaching(sites, ratios=(0.5, 0.25)[: len(sites)], kv_from=1)
    with pruned(model, chosen, positions=policy) as session:
        out = decoded(model, inputs)
    record = session.last
    last = int(sites[-1].split(":")[1][0]) + sites[-1].endswith(".mid")
    assert record.kv_visual_tokens[1][1:last] == (record.final()[1],) * (last - 1)
    assert record.kv_tokens()[1] < record.layer_average()[1]
    gone = dropped_by_layer(record, inputs, IMAGE, 4)
    back = gone.clone()
    back[1:last] = gone[-1]
    valid = torch.cat([inputs["attention_mask"], torch.ones(len(SAMPLES), 8, dtype=torch.long)], dim=1)
    if policy == "compact":
        return  # positions of a layer follow its own rows; that these runs decode at all is what is asked here
    with masked_from(model, gone, valid, compact=False, hidden=lambda layer, row: back[layer]):
        expected = reference(model, inputs, out)
    length = inputs["input_ids"].shape[1]
    for step in range(8):
        close(out.logits[step], expected[:, length - 1 + step])


def test_caches_cut_back_hold_what_the_record_says(model: Any) -> None:
    with pruned(model, Reaching(("layer:2",), kv_from=0), ratio=0.25) as session:
        cache = model(**batch(SAMPLES[:1]), use_cache=True).past_key_values
    text = len(SAMPLES[0][0]) - TOKENS
    assert [layer.keys.shape[-2] - text for layer in cache.layers] == list(session.last.kv_visual_tokens[0])
    assert session.last.kv_visual_tokens[0] == (4, 4, 4, 4)
    assert session.last.visual_tokens[0] == (16, 16, 4, 4)


@pytest.mark.parametrize("sites", [(), ("input",), ("layer:1",), ("layer:3",)], ids="+".join)
def test_views_at_decoding_steps_equal_masked_rows(model: Any, sites: tuple[str, ...]) -> None:
    inputs = batch(SAMPLES)
    with pruned(model, Alternating(sites, ratios=(0.5,) * len(sites), layer=2)) as session:
        out = decoded(model, inputs)
    assert len(session.steps) == 7
    assert session.steps[0].layer == 2
    assert all(0 < sum(step.visible) < sum(step.cached) for step in session.steps)
    gone = dropped_by_layer(session.last, inputs, IMAGE, 4)
    length = inputs["input_ids"].shape[1]
    images = inputs["input_ids"] == IMAGE
    index = (images.long().cumsum(1) - 1) % TOKENS

    def hidden(layer: int, row: int) -> torch.Tensor:
        return images & (index % 2 != (row - length) % 2) if layer >= 2 else torch.zeros_like(images)

    valid = torch.cat([inputs["attention_mask"], torch.ones(len(SAMPLES), 8, dtype=torch.long)], dim=1)
    with masked_from(model, gone, valid, compact=False, hidden=hidden):
        expected = reference(model, inputs, out)
    for step in range(8):
        close(out.logits[step], expected[:, length - 1 + step])


def test_a_step_that_sees_everything_changes_nothing(model: Any) -> None:
    inputs = batch(SAMPLES)

    class Seeing(Alternating):
        def decide(self, view: View, stop: Stop, state: State) -> Decision:
            return Decision.keep(torch.arange(view.tokens).expand(view.units, -1))

    Seeing.spec = Alternating.spec
    plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    with pruned(model, Seeing((), layer=1)):
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), plain)


def test_attention_at_a_decoding_step_is_the_models_own() -> None:
    model = random_llava("eager")
    inputs = batch([SAMPLES[0]])
    seen: list[torch.Tensor] = []
    with pruned(model, Alternating((), layer=3, seen=lambda view: seen.append(view.attention("last")[0]))):
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_attentions=True
        )
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    for step in range(2):
        close(seen[step], out.attentions[step + 1][2][:, :, -1:, slots])


def test_views_at_decoding_steps_refuse_what_is_not_there(model: Any) -> None:
    inputs = batch(SAMPLES[:1])
    with pruned(model, Alternating((), layer=2, seen=lambda view: view.hidden())):
        with pytest.raises(IncompatibleError, match="hidden"):
            model.generate(**inputs, max_new_tokens=3)
        with pytest.raises(IncompatibleError, match="beam"):
            model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)
    with pruned(model, Alternating((), layer=0)), pytest.raises(IncompatibleError, match="layer 0"):
        model(**inputs)


@pruner(
    "watching",
    summary="looks",
    source=Source("test"),
    axes=Axes(site="input"),
    needs=("geometry", "encoder"),
    sites=("input",),
)
@dataclass(frozen=True)
class Watching(Pruner):
    """Keeps the first K of what it sees as one unit."""

    seen: Any = None

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        return [Stop(Site("input"), budget)]

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        self.seen.append((view.frames(), view.grid(), view.tokens, view.coordinates(), view.encoder_features()))
        return Decision.keep(torch.arange(view.keep).expand(view.units, -1))


def test_frames_are_one_unit(model: Any) -> None:
    seen: list[Any] = []
    inputs = batch([SAMPLES[1]])
    with pruned(model, Watching(seen), tokens=20, frames=True) as session:
        model(**inputs)
    frames, grid, tokens, coordinates, features = seen[0]
    assert (frames, grid, tokens) == (2, (GRID, GRID), 2 * TOKENS)
    assert torch.equal(coordinates[0, :TOKENS], coordinates[0, TOKENS:])
    assert not torch.allclose(features[0, :TOKENS], features[0, TOKENS:])
    assert session.last.final() == (20,)
    assert session.last.units[0].indices == tuple(range(20))
    with pruned(model, Watching(seen), tokens=20) as session:
        model(**inputs)
    assert session.last.final() == (32,)


@pytest.mark.parametrize("sites", [("input",), ("encoder", "layer:2"), ("tower:1.mid", "layer:1")], ids="+".join)
def test_a_video_pruned_equals_masked(model: Any, sites: tuple[str, ...]) -> None:
    inputs = batch([SAMPLES[1]])
    ratios = (0.5, 0.25)[: len(sites)]
    with pruned(model, ByContent(sites, ratios=ratios, by_content=False), frames=True) as session:
        logits = model(**inputs).logits
        alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        many = model.generate(**batch(SAMPLES), max_new_tokens=4, do_sample=False)
    assert alone[0, -4:].tolist() == many[1, -4:].tolist()
    kept = session.records[0].visual_tokens[0][-1]
    assert kept == round(32 * ratios[-1])
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    gone = torch.zeros(4, *inputs["input_ids"].shape, dtype=torch.bool)
    for unit in session.records[0].units:
        whole = unit.before > TOKENS or unit.site.startswith("layer") or unit.site == "input"
        part = slots if whole else slots[unit.image * TOKENS : (unit.image + 1) * TOKENS]
        out = torch.ones(len(part), dtype=torch.bool)
        out[list(unit.indices)] = False
        gone[unit.decoder_layer :, 0, part[out]] = True
    with (
        masked_from(model, gone, inputs["attention_mask"], compact=False),
        tower_masked(model, session.records[0], TOKENS),
    ):
        expected = model(**inputs, use_cache=False).logits
    close(logits[0, ~gone[-1, 0]], expected[0, ~gone[-1, 0]])


def test_videos_of_unequal_length_need_a_ratio(model: Any) -> None:
    with pruned(model, ByContent(), tokens=8, frames=True), pytest.raises(IncompatibleError, match="frames"):
        model(**batch(SAMPLES))


def test_a_site_that_the_spec_does_not_declare_is_refused(model: Any) -> None:
    class Undeclared(ByContent):
        pass

    Undeclared.spec = Watching.spec
    with pruned(model, Undeclared(("layer:1",)), ratio=0.5), pytest.raises(IncompatibleError, match="declares"):
        model(**batch(SAMPLES[:1]))
