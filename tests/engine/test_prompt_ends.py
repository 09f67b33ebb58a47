"""A prompt that ends in a picture, at every kind of site: its last token stays as it is, and gives the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tests.engine.pruners import Alternating, Averaging, First, Ragged, Reaching
from tests.engine.reference import dropped_by_layer, masked_from, positions_of, tower_masked
from tokenprune.engine import pruned
from tokenprune.engine.prompt_end import with_last
from tokenprune.pruner import Decision, Kept, State, Stop, View

SITES = [
    ("input",),
    ("encoder", "layer:2"),
    ("layer:1", "layer:3.mid"),
    ("tower:0.mid", "tower:1", "layer:2"),
    ("tower:1.mid", "encoder", "input", "layer:0.mid"),
]


def ending(seed: int, images: int = 1, *, text: bool = True) -> tuple[list[int], Tensor]:
    """Token ids and pixels of a prompt that ends in its last picture, or holds nothing but pictures."""
    ids, pixels = prompt(seed, images=images)
    last = len(ids) - ids[::-1].index(IMAGE)
    return (ids[:last] if text else [IMAGE] * TOKENS * images), pixels


class Nothing(First):
    """Keeps no token."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        return Decision((Kept(torch.arange(0)),) * view.units)


#: One sample ends in text.
SAMPLES = [ending(1), ending(2, 2), prompt(3), ending(4, text=False)]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


def shrinking(sites: tuple[str, ...], kind: type[First] = First) -> First:
    return kind(sites, ratios=tuple(0.5**power for power in range(1, len(sites) + 1)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_pruned_equals_masked(model: Any, sites: tuple[str, ...], policy: Any, side: str) -> None:
    inputs = batch(SAMPLES, side=side)
    valid = inputs["attention_mask"].bool()
    ends = torch.arange(valid.shape[1]).masked_fill(~valid, -1).amax(dim=1)
    placed = {**inputs, "position_ids": positions_of(valid)}
    with pruned(model, shrinking(sites), positions=policy) as session:
        logits = model(**placed).logits
        out = model.generate(
            **batch(SAMPLES), max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    record = session.records[0]
    gone = dropped_by_layer(record, inputs, IMAGE, 4)
    with masked_from(model, gone, valid, compact=policy == "compact"), tower_masked(model, record, TOKENS):
        expected = model(**placed, use_cache=False).logits
    rows = valid & ~gone[-1]
    assert rows.gather(1, ends[:, None]).all()
    assert [sum(unit.held for unit in record.units if unit.sample == sample) for sample in range(4)] == [
        len(sites),
        len(sites),
        0,
        len(sites),
    ]
    torch.testing.assert_close(logits[rows], expected[rows], atol=2e-5, rtol=1e-5)
    for sample, end in enumerate(ends):
        torch.testing.assert_close(out.logits[0][sample], expected[sample, end], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sites", SITES, ids="+".join)
@pytest.mark.parametrize("kind", [First, Ragged])
def test_every_answer_is_that_of_the_prompt_alone(model: Any, sites: tuple[str, ...], kind: Any) -> None:
    with pruned(model, shrinking(sites, kind)):
        together = model.generate(**batch(SAMPLES), max_new_tokens=4, do_sample=False)
        alone = [model.generate(**batch([each]), max_new_tokens=4, do_sample=False) for each in SAMPLES]
    for row, single in zip(together, alone, strict=True):
        assert row[-4:].tolist() == single[0, -4:].tolist()


@pytest.mark.parametrize("site", ["input", "layer:2", "layer:1.mid"])
@pytest.mark.parametrize("text", [True, False])
def test_where_all_is_dropped_the_last_token_is_left(model: Any, site: str, text: bool) -> None:
    inputs = batch([ending(5, text=text)])
    with pruned(model, Nothing((site,)), ratio=0.5) as session:
        logits = model(**inputs).logits
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    assert session.last.final() == (1,)
    assert session.last.units[-1].indices == (TOKENS - 1,)
    gone = dropped_by_layer(session.last, inputs, IMAGE, 4)
    valid = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long)
    with masked_from(model, gone, valid, compact=False):
        expected = model(
            input_ids=out.sequences, pixel_values=inputs["pixel_values"], attention_mask=valid, use_cache=False
        ).logits
    torch.testing.assert_close(logits[0, -1], expected[0, -4], atol=1e-5, rtol=1e-5)
    for step in range(3):
        torch.testing.assert_close(out.logits[step][0], expected[0, step - 4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["tower:1", "encoder", "input", "layer:2"])
@pytest.mark.parametrize("reverse", [True, False])
def test_merged_rows_in_any_order_stand_before_the_last_token(model: Any, site: str, reverse: bool) -> None:
    """Its row reads the model as it does where nothing is merged: all in its own place and at its own position."""
    chosen = Averaging((site,), weighted=True, reverse=reverse)
    with pruned(model, chosen, tokens=5) as session:
        together = model.generate(**batch(SAMPLES), max_new_tokens=4, do_sample=False)
        alone = [model.generate(**batch([each]), max_new_tokens=4, do_sample=False) for each in SAMPLES]
    for row, single in zip(together, alone, strict=True):
        assert row[-4:].tolist() == single[0, -4:].tolist()
    first = session.records[1].units[0]
    assert first.indices == (*([13, 10, 7, 4, 0] if reverse else [0, 4, 7, 10, 13]), 15)
    assert first.log_weights[-1] == 0.0


def test_caches_cut_back_hold_the_last_token(model: Any) -> None:
    chosen = Reaching(("layer:2",), kv_from=0)
    with pruned(model, chosen, ratio=0.25) as session:
        cache = model(**batch([SAMPLES[0]]), use_cache=True).past_key_values
    text = len(SAMPLES[0][0]) - TOKENS
    kept = session.last.units[0].kept
    assert [layer.keys.shape[-2] - text for layer in cache.layers] == [kept] * 4
    assert TOKENS - 1 in session.last.units[0].indices


def test_views_at_decoding_steps_follow_a_picture(model: Any) -> None:
    """The prompt's last token is one of those that a step sees or does not see; the step's own token always is."""
    with pruned(model, Alternating(("input",), ratios=(0.5,), layer=2)) as session:
        together = model.generate(**batch(SAMPLES), max_new_tokens=4, do_sample=False)
        alone = [model.generate(**batch([each]), max_new_tokens=4, do_sample=False) for each in SAMPLES]
    assert len(session.steps) == 3 * 5
    for row, single in zip(together, alone, strict=True):
        assert row[-4:].tolist() == single[0, -4:].tolist()


def test_a_smaller_picture_ends_in_its_last_row(model: Any) -> None:
    """Its rows are all that is there, so no row comes back: the last of them stands in the last place."""
    inputs = batch([SAMPLES[0]])
    with pruned(model, "downsample", tokens=4, positions="compact") as session:
        logits = model(**inputs).logits
    assert (session.last.final(), session.last.units[0].held) == ((4,), False)
    assert session.last.units[0].indices[-1] == TOKENS - 1
    words, pixels = SAMPLES[0][0][:-TOKENS], SAMPLES[0][1]
    small = torch.nn.functional.interpolate(pixels, size=(16, 16), mode="bicubic", antialias=True)
    encode = model.model.get_image_features
    features = encode(small, interpolate_pos_encoding=True, return_dict=True).pooler_output[0]
    embedded = torch.cat([model.get_input_embeddings()(torch.tensor(words)), features])[None]
    expected = model(inputs_embeds=embedded).logits
    torch.testing.assert_close(logits[0, -1], expected[0, -1], atol=1e-5, rtol=1e-5)


def test_a_last_row_that_is_emitted_earlier_moves_to_the_end() -> None:
    merge = torch.eye(4)[[3, 0, 2]].to_sparse()
    kept = Kept(torch.tensor([3, 0, 2]), merge, torch.tensor([0.3, 0.0, 0.2]), ("three", "zero", "two"))
    held = with_last(kept, 4, resized=False)
    assert held.anchors.tolist() == [0, 2, 3]
    assert held.merge is not None
    assert held.log_weights is not None
    assert torch.equal(held.merge, torch.eye(4)[[0, 2, 3]])
    torch.testing.assert_close(held.log_weights, torch.tensor([0.0, 0.2, 0.3]))
    assert held.labels == ("zero", "two", "three")
    assert with_last(held, 4, resized=False) is held
