"""The floor is the stock model on a shorter prompt: the same lengths, the same logits, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tokenprune.engine import pruned
from tokenprune.engine.short_prompt import shorter_prompt
from tokenprune.engine.timestamps import timestamps_of
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.pruner import Pruner

NEW = 3


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


def generate(model: Any, **inputs: Any) -> Any:
    return model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
    )


def state(model: Any) -> tuple[Any, Any]:
    """Attributes and hooks of every module."""
    return (
        {name: set(vars(module)) for name, module in model.named_modules()},
        {
            name: (list(module._forward_pre_hooks), list(module._forward_hooks))
            for name, module in model.named_modules()
        },
    )


@pytest.mark.parametrize("tokens", [0, 1, 5, 8, 15])
@pytest.mark.parametrize("images", [1, 2])
def test_it_is_the_stock_model_on_a_prompt_of_that_length(model: Any, tokens: int, images: int) -> None:
    inputs = batch([prompt(3, images=images)])
    with shorter_prompt(parts_of(model), inputs, tokens):
        found = generate(model, **inputs)
    # the same by hand: the encoder's outputs and the placeholders that are left, through the stock model's own door
    ids = inputs["input_ids"][0]
    visual = (ids == IMAGE).nonzero()[:, 0]
    picks = [number * len(visual) // tokens for number in range(tokens)]
    gone = torch.ones(len(visual), dtype=torch.bool)
    gone[picks] = False
    short = ids[[place for place in range(len(ids)) if place not in visual[gone].tolist()]][None]
    with torch.no_grad():
        features = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
        rows = torch.cat(list(features.pooler_output))[picks]
        text = model.get_input_embeddings()(torch.where(short == IMAGE, 0, short))
        text[short == IMAGE] = rows
        expected = model(inputs_embeds=text, use_cache=True)
    assert torch.allclose(found.logits[0], expected.logits[:, -1], atol=1e-5)
    lengths = {layer.keys.shape[2] for layer in found.past_key_values.layers}
    assert lengths == {short.shape[1] + NEW - 1}  # the last token is not run
    said = found.sequences[:, ids.shape[0] : -1]
    with torch.no_grad():
        again = model(input_ids=said, past_key_values=expected.past_key_values)
    assert torch.allclose(torch.stack(found.logits[1:], 1), again.logits, atol=1e-5)


def test_with_all_tokens_it_is_the_stock_model_itself(model: Any) -> None:
    inputs = batch([prompt(3)])
    with shorter_prompt(parts_of(model), inputs, TOKENS):
        whole = generate(model, **inputs)
    stock = generate(model, **inputs)
    assert all(torch.equal(left, right) for left, right in zip(whole.logits, stock.logits, strict=True))


def test_nothing_is_left_behind(model: Any) -> None:
    inputs = batch([prompt(3)])
    parts = parts_of(model)
    before = generate(model, **inputs)
    attributes, hooks = state(model)

    def interrupted() -> None:
        with shorter_prompt(parts, inputs, 4), timestamps_of(parts, lambda: 0):
            generate(model, **inputs)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert state(model) == (attributes, hooks)
    after = generate(model, **inputs)
    assert all(torch.equal(left, right) for left, right in zip(before.logits, after.logits, strict=True))


def test_what_cannot_be_shortened_is_said(model: Any) -> None:
    parts = parts_of(model)
    one = batch([prompt(3)])
    with pytest.raises(IncompatibleError, match="17 of 16 visual tokens"), shorter_prompt(parts, one, TOKENS + 1):
        pass
    two = batch([prompt(3), prompt(4)])
    with pytest.raises(IncompatibleError, match="only one prompt at a time"), shorter_prompt(parts, two, 4):
        pass
    blind = {"input_ids": one["input_ids"]}
    with pytest.raises(IncompatibleError, match="no images"), shorter_prompt(parts, blind, 4):
        pass


@pytest.mark.parametrize("pruner", [None, "grid"])
def test_the_moments_of_a_run_are_in_order(model: Any, pruner: str | Pruner | None) -> None:
    ticks = iter(range(1000))
    inputs = batch([prompt(3)])
    with pruned(model, pruner, 0.25) as session, timestamps_of(session.parts, lambda: next(ticks)) as moments:
        for _ in range(2):  # what a first run found is forgotten
            moments.clear()
            begin = next(ticks)
            generate(model, **inputs)
            end = next(ticks)
    assert (len(moments.encoder), len(moments.forward)) == (1, NEW)
    found = [begin, *moments.encoder[0], *(mark for stretch in moments.forward for mark in stretch), end]
    assert found == list(range(begin, end + 1))  # one after the other, and nothing in between


def test_the_floor_of_masks_that_the_model_builds_itself() -> None:
    """Rows and columns of a four-dimensional mask, and of one mask for each kind of layer."""
    from tokenprune.engine.short_prompt import _ShortPrompt

    short = _ShortPrompt(4, torch.tensor([0, 2, 3]), torch.tensor([0]))
    mask = torch.arange(16).reshape(1, 1, 4, 4)
    given = {
        "inputs_embeds": torch.arange(8.0).reshape(1, 4, 2),
        "attention_mask": {"full_attention": mask, "sliding_attention": None},
        "position_ids": torch.tensor([[[0, 1, 2, 3]]] * 3),
        "use_cache": True,
    }
    made = short.arguments(given)
    assert made["inputs_embeds"].tolist() == [[[0, 1], [4, 5], [6, 7]]]
    assert made["attention_mask"]["full_attention"].tolist() == [[[[0, 2, 3], [8, 10, 11], [12, 14, 15]]]]
    assert made["attention_mask"]["sliding_attention"] is None
    assert made["position_ids"].tolist() == [[[0, 1, 2]]] * 3
    assert made["use_cache"] is True
    with pytest.raises(IncompatibleError, match="cannot be shortened"):
        short.arguments({**given, "attention_mask": object()})
