"""What a pruned cache carries: views at decoding steps, weights, and what befalls it when a pass breaks off."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.engine.models import batch, prompt, random_llava
from tests.engine.pruners import Alternating, Averaging, ByContent
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError

INPUTS = batch([prompt(3)])
QUESTION = torch.tensor([[5, 6, 7]])
CHOSEN = ByContent(("input", "layer:2"), ratios=(0.5, 0.25))
VIEWING = Alternating(("layer:1",), ratios=(0.5,), layer=2)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def steps(model: Any, cache: Any) -> list[Tensor]:
    """Logits of a question, token by token."""
    return [model(input_ids=QUESTION[:, step, None], past_key_values=cache).logits for step in range(3)]


def prefilled(model: Any) -> Any:
    return model(**INPUTS, use_cache=True).past_key_values


@pytest.mark.parametrize("chosen", [VIEWING, Averaging(("layer:2",), weighted=True, ratios=(0.25,))])
def test_copies_have_their_own_views_and_weights(model: Any, chosen: Any) -> None:
    with pruned(model, chosen, ratio=0.5):
        expected = steps(model, prefilled(model))
        cache = prefilled(model)
        copies = [copy.deepcopy(cache), cache]
        for step in range(3):  # side by side
            for each in copies:
                found = model(input_ids=QUESTION[:, step, None], past_key_values=each).logits
                assert torch.equal(found, expected[step])


def test_a_shallow_copy_grows_with_its_original(model: Any) -> None:
    with pruned(model, CHOSEN, ratio=0.5):
        expected = steps(model, prefilled(model))
        cache = prefilled(model)
        twin = copy.copy(cache)
        for step, each in enumerate((cache, twin, cache)):
            found = model(input_ids=QUESTION[:, step, None], past_key_values=each).logits
            assert torch.equal(found, expected[step])
        assert twin.get_seq_length() == cache.get_seq_length() == INPUTS["input_ids"].shape[1] + 3


def test_a_copy_of_one_layer_is_not_mistaken_for_the_cache(model: Any) -> None:
    with pruned(model, CHOSEN, ratio=0.5):
        cache = prefilled(model)
        mixed = copy.copy(cache)
        mixed.layers = [copy.deepcopy(layer) for layer in cache.layers]
        steps(model, cache)
        with pytest.raises(IncompatibleError, match="layer 0 holds"):
            steps(model, mixed)


def test_a_cache_saved_by_torch(model: Any) -> None:
    stored = io.BytesIO()
    with pruned(model, CHOSEN, ratio=0.5):
        expected = steps(model, prefilled(model))
        torch.save(prefilled(model), stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    assert isinstance(loaded, DynamicCache)
    with pruned(model, CHOSEN, ratio=0.25):  # another budget: only what comes later is chosen by it
        assert all(map(torch.equal, steps(model, loaded), expected))


def test_keys_and_values_alone_are_refused(model: Any) -> None:
    with pruned(model, CHOSEN, ratio=0.5):
        with pytest.raises(IncompatibleError, match="do not say by themselves"):
            DynamicCache(prefilled(model))
        assert list(DynamicCache()) == []


def test_views_do_not_follow_other_samples_or_lengths(model: Any) -> None:
    changes = {
        "reorder_cache": torch.tensor([0]),
        "batch_select_indices": torch.tensor([0]),
        "batch_repeat_interleave": 2,
        "crop": -1,
    }
    with pruned(model, VIEWING, ratio=0.5):
        expected = steps(model, prefilled(model))
        cache = prefilled(model)
        for name, value in changes.items():
            with pytest.raises(IncompatibleError, match="at every decoding step do not follow"):
                getattr(cache, name)(value)
        assert all(map(torch.equal, steps(model, cache), expected))


def test_a_length_to_crop_to_is_refused(model: Any) -> None:
    with pruned(model, CHOSEN, ratio=0.5), pytest.raises(IncompatibleError, match="cannot be cropped to 8 tokens"):
        prefilled(model).crop(8)


def test_drafted_tokens_after_a_pruned_prompt_are_refused(model: Any) -> None:
    """The stock `generate` reads the whole conversation into the cache a second time."""
    told = torch.cat([INPUTS["input_ids"], QUESTION], dim=1)
    asked = {"input_ids": told, "attention_mask": torch.ones_like(told), "max_new_tokens": 4}
    with pruned(model, CHOSEN, ratio=0.5):
        cache = prefilled(model)
        with pytest.raises(IncompatibleError, match="runs in the mode `assisted_generation`"):
            model.generate(**asked, past_key_values=cache, prompt_lookup_num_tokens=3)


def test_a_cache_of_a_pass_that_broke_off(model: Any) -> None:
    layer = model.model.language_model.layers[3]

    def fail(*call: Any) -> None:
        raise ArithmeticError

    with pruned(model, CHOSEN, ratio=0.5):
        expected = steps(model, prefilled(model))
        first, later = DynamicCache(config=model.config.text_config), prefilled(model)
        handle = layer.register_forward_pre_hook(fail)
        for call in (lambda: model(**INPUTS, past_key_values=first), lambda: steps(model, later)):
            with pytest.raises(ArithmeticError):
                call()
        handle.remove()
        with pytest.raises(IncompatibleError, match="broke off"):
            steps(model, first)
        with pytest.raises(IncompatibleError, match="layer 0 holds"):
            steps(model, later)
        first.reset()
        model(**INPUTS, past_key_values=first)
        assert all(map(torch.equal, steps(model, first), expected))


def test_a_cache_of_another_model(model: Any) -> None:
    other, smaller = random_llava(seed=1), random_llava(layers=3)
    with pruned(model, CHOSEN, ratio=0.5):
        cache = prefilled(model)
        with pruned(other, CHOSEN, ratio=0.5), pytest.raises(IncompatibleError, match="another model"):
            steps(other, copy.deepcopy(cache))
        for stock in (other, smaller):
            with pytest.raises(IncompatibleError, match="outside of the session"):
                steps(stock, copy.deepcopy(cache))
        stored = io.BytesIO()
        torch.save(cache, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    with pruned(smaller, CHOSEN, ratio=0.5), pytest.raises(IncompatibleError, match="of 4 layers, not on a"):
        steps(smaller, loaded)


def test_what_was_not_pruned_is_the_stock_models_cache(model: Any) -> None:
    with pruned(model, None, ratio=1.0):
        cache = prefilled(model)
    assert type(cache) is DynamicCache
    expected = steps(model, prefilled(model))
    assert all(map(torch.equal, steps(model, cache), expected))
