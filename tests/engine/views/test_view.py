"""What a view gives equals what the stock model computes, seen through its own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tests.engine.pruners import ByContent
from tests.engine.views.asking import Asking, ask
from tokenprune.engine import capture_prefill, pruned
from tokenprune.errors import IncompatibleError, NothingPrunedError, UndeclaredNeedError
from tokenprune.pruner import NEEDS, Decision, Kept, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

SAMPLES = [prompt(1), prompt(2, images=2), prompt(3, text=11)]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava("eager")


def spans(inputs: dict[str, torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    found = []
    for sample, ids in enumerate(inputs["input_ids"]):
        slots = (ids == IMAGE).nonzero()[:, 0]
        found += [(sample, part) for part in slots.split(TOKENS)]
    return found


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("rows", ["last", "text", "visual"])
def test_attention_equals_the_eager_attention_of_the_model(model: Any, rows: Any, layer: int) -> None:
    inputs = batch(SAMPLES)
    truth = model(**inputs, output_attentions=True).attentions[layer]
    probabilities, mask = ask(model, inputs, lambda view: view.attention(rows, layer=layer))
    for unit, (sample, slots) in enumerate(spans(inputs)):
        length = inputs["input_ids"].shape[1]
        after = [slot for slot in range(int(slots[-1]) + 1, length) if inputs["input_ids"][sample, slot] != IMAGE]
        wanted = {"last": [length - 1], "text": after, "visual": slots.tolist()}[rows]
        assert int(mask[unit].sum()) == len(wanted)
        expected = truth[sample][:, wanted][:, :, slots]
        torch.testing.assert_close(probabilities[unit][:, : len(wanted)], expected, atol=1e-6, rtol=1e-5)
        assert (probabilities[unit][:, len(wanted) :] == 0).all()


def test_attention_on_the_visual_support_sums_to_one(model: Any) -> None:
    probabilities, _ = ask(model, batch(SAMPLES), lambda view: view.attention("last", support="visual"))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))


def test_projections_equal_the_modules_own(model: Any) -> None:
    inputs = batch(SAMPLES)
    states = model(**inputs, output_hidden_states=True).hidden_states
    layer = model.model.language_model.layers[2]
    normed = layer.input_layernorm(states[2])
    keys = layer.self_attn.k_proj(normed).unflatten(-1, (2, 8)).transpose(1, 2)
    values = layer.self_attn.v_proj(normed).unflatten(-1, (2, 8)).transpose(1, 2)
    got_keys = ask(model, inputs, lambda view: view.keys(rope=False))
    got_values = ask(model, inputs, lambda view: view.values())
    hidden = ask(model, inputs, lambda view: view.hidden())
    for unit, (sample, slots) in enumerate(spans(inputs)):
        torch.testing.assert_close(got_keys[unit], keys[sample][:, slots], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got_values[unit], values[sample][:, slots], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(hidden[unit], states[2][sample, slots], atol=1e-6, rtol=1e-5)


def test_rotated_keys_and_queries_differ_from_plain_ones_by_a_rotation(model: Any) -> None:
    inputs = batch(SAMPLES)
    rotated = ask(model, inputs, lambda view: view.keys(rope=True))
    plain = ask(model, inputs, lambda view: view.keys(rope=False))
    torch.testing.assert_close(rotated.norm(dim=-1), plain.norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rotated, plain)
    (queries, mask) = ask(model, inputs, lambda view: view.queries("text", rope=True))
    assert queries.shape[1] == 4
    assert queries.shape[2] == mask.shape[1]


def test_encoder_attention_equals_the_towers_own(model: Any) -> None:
    inputs = batch(SAMPLES)
    truth = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    read = ask(model, inputs, lambda view: view.cls_attention(), "encoder")
    first = ask(model, inputs, lambda view: view.cls_attention(0), "input")
    received = ask(model, inputs, lambda view: view.received_attention(-1), "layer:1")
    torch.testing.assert_close(read, truth[1][:, :, 0, 1:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first, truth[0][:, :, 0, 1:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(received, truth[2].mean(1).mean(1)[:, 1:], atol=1e-6, rtol=1e-5)


def test_features_embeddings_and_geometry(model: Any) -> None:
    inputs = batch(SAMPLES)
    tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    features = ask(model, inputs, lambda view: view.encoder_features(), "layer:1")
    torch.testing.assert_close(features, tower.hidden_states[-2][:, 1:], atol=1e-6, rtol=1e-5)
    projected = ask(model, inputs, lambda view: view.projected())
    torch.testing.assert_close(projected, model.model.multi_modal_projector(features), atol=1e-5, rtol=1e-5)
    text, mask = ask(model, inputs, lambda view: view.text_embeddings(), "input")
    ids = inputs["input_ids"][0]
    after = ids[int((ids == IMAGE).nonzero()[-1]) + 1 :]
    torch.testing.assert_close(text[0][mask[0]], model.get_input_embeddings()(after))
    coordinates = ask(model, inputs, lambda view: view.coordinates())
    assert coordinates[0, 5].tolist() == [1.0, 1.0]


def test_final_norm(model: Any) -> None:
    inputs = batch(SAMPLES[:1])
    states = model(**inputs, output_hidden_states=True).hidden_states
    visual, _, mask = ask(model, inputs, lambda view: view.final_hidden())
    (_, slots), *_ = spans(inputs)
    torch.testing.assert_close(visual[0], model.model.language_model.norm(states[2])[0, slots], atol=1e-5, rtol=1e-5)
    assert mask.sum() == 9


def test_later_stops_see_the_tokens_that_are_left(model: Any) -> None:
    """At the second stop, earlier layers, the encoder and the geometry are still found by original index."""
    inputs = batch(SAMPLES)
    whole = ask(model, inputs, lambda view: (view.keys(rope=False, layer=0), view.cls_attention()), "layer:1")
    seen = []

    class Second(ByContent):
        def decide(self, view: View, stop: Stop, state: State) -> Decision:
            if stop.site.layer == 3:
                seen.append((view.indices(), view.keys(rope=False, layer=0), view.cls_attention(), view.attention()))
            return super().decide(view, stop, state)

    Second.spec = Asking.spec
    with pruned(model, Second(("layer:1", "layer:3"), ratios=(0.5, 0.25)), joint=object()):
        model(**inputs)
    indices, keys, cls, (probabilities, _) = seen[0]
    assert indices.shape == (4, 8)
    torch.testing.assert_close(keys, whole[0].gather(2, indices[:, None, :, None].expand(-1, 2, -1, 8)))
    torch.testing.assert_close(cls, whole[1].gather(2, indices[:, None].expand(-1, 4, -1)))
    assert probabilities.shape == (4, 4, 1, 8)


def test_undeclared_needs_are_refused(model: Any) -> None:
    bare = pruner("bare", summary="", source=Source("test"), axes=Axes(site="any"), sites=("layer",))(
        dataclass(frozen=True)(type("Bare", (Asking,), {}))
    )
    calls: list[tuple[str, Callable[[View], Any]]] = [
        ("hidden", lambda view: view.hidden()),
        ("qkv", lambda view: view.keys(rope=True)),
        ("attention", lambda view: view.attention()),
        ("final_norm", lambda view: view.final_hidden()),
        ("encoder", lambda view: view.encoder_features()),
        ("encoder_attention", lambda view: view.cls_attention()),
        ("projected", lambda view: view.projected()),
        ("joint", lambda view: view.joint_image()),
        ("text", lambda view: view.text_embeddings()),
        ("geometry", lambda view: view.grid()),
        ("fingerprint", lambda view: view.fingerprints()),
    ]
    assert {need for need, _ in calls} == set(NEEDS)
    for need, call in calls:
        with pytest.raises(UndeclaredNeedError, match=need), pruned(model, bare(call), ratio=0.5):
            model(**batch(SAMPLES[:1]))


def test_answers_are_checked(model: Any) -> None:
    wrong: list[Kept] = [
        Kept(torch.tensor([0, 0])),
        Kept(torch.tensor([0, 16])),
        Kept(torch.tensor([0.0])),
        Kept(torch.tensor([0, 1]), merge=torch.ones(2, 3)),
    ]
    for kept in wrong:

        class Wrong(ByContent):
            def decide(self, view: View, stop: Stop, state: State, kept: Kept = kept) -> Decision:
                return Decision((kept,) * view.units)

        Wrong.spec = ByContent.spec
        with pytest.raises(NothingPrunedError), pruned(model, Wrong(), ratio=0.5):
            model(**batch(SAMPLES[:1]))


def test_what_a_model_cannot_give_is_refused(model: Any) -> None:
    with pytest.raises(IncompatibleError, match="decoder layer 3"):
        ask(model, batch(SAMPLES), lambda view: view.keys(rope=True, layer=3), "layer:1")
    with pytest.raises(IncompatibleError, match="embeddings"):
        ask(model, batch(SAMPLES), lambda view: view.projected(), "encoder")
    with pytest.raises(IncompatibleError, match="joint"), pruned(model, Asking(lambda view: None), ratio=0.5):
        pass


def test_capture_equals_the_models_attention(model: Any) -> None:
    inputs = batch(SAMPLES)
    truth = model(**inputs, output_attentions=True).attentions[3]
    (captured,) = capture_prefill(model, inputs, [3])
    logits = captured.queries @ captured.keys.repeat_interleave(2, dim=1).transpose(-1, -2) * captured.scaling
    length = logits.shape[-1]
    allowed = captured.valid[:, None, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    mine = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
    for sample in range(3):
        rows = captured.valid[sample]
        torch.testing.assert_close(mine[sample][:, rows], truth[sample][:, rows], atol=1e-6, rtol=1e-5)
    assert [len(rows) for rows in captured.visual] == [16, 32, 16]
    assert [len(rows) for rows in captured.text_after] == [9, 9, 14]
    with pytest.raises(IncompatibleError):
        capture_prefill(model, inputs, [4])
