"""Pruned KV caches as people use them: copied, kept on disk, reordered, cropped, and used where they do not belong."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.proving import BOTH, Zoo, chosen, close, everyone
from tests.families.zoo import Built, Sample
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError

QUESTIONS = (torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[10, 11, 12]]))


def ask(built: Built, ids: Tensor, cache: Any) -> Tensor:
    """Logits of a turn of text on a cache."""
    logits: Tensor = built.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits


def prefilled(built: Built, *samples: Sample) -> Any:
    """A cache that holds prompts."""
    return built.model(**built.inputs(*samples), use_cache=True).past_key_values


def crops(built: Built, sample: Sample) -> bool:
    """Whether the stock model's cache can be cropped after a turn; windows that are full cannot."""
    cache = prefilled(built, sample)
    ask(built, QUESTIONS[1], cache)
    try:
        cache.crop(-QUESTIONS[1].shape[1])
    except RuntimeError:
        return False
    return True


def reply(built: Built, inputs: Any, question: Tensor, cache: Any, *, whole: bool) -> Tensor:
    """What `generate` says to a question on a cache: from the whole conversation, or from the new turn alone."""
    told = torch.cat([inputs["input_ids"], question], dim=1)
    said: Tensor = built.model.generate(
        input_ids=told if whole else question,
        attention_mask=torch.ones_like(told),
        past_key_values=cache,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
    )
    return said[:, -4:]


@everyone
@torch.no_grad()
def test_copies_answer_as_their_original(zoo: Zoo, name: str) -> None:
    """One prefill, several questions; other pictures pass the model in between, and the original goes."""
    built = zoo(name)
    sample, other = Sample(images=1, seed=2), Sample(images=1, seed=3)
    inputs = built.inputs(sample)
    with pruned(built.model, chosen(BOTH), ratio=0.5) as session:
        expected = [ask(built, question, prefilled(built, sample)) for question in QUESTIONS]
        said = reply(built, inputs, QUESTIONS[0], prefilled(built, sample), whole=True)
        alone = reply(built, inputs, QUESTIONS[0], prefilled(built, sample), whole=False)
        cache = prefilled(built, sample)
        copies = [copy.deepcopy(cache) for _ in range(4)]
        shallow, stored = copy.copy(prefilled(built, sample)), pickle.dumps(cache)
        lengths = {layer.keys.shape[-2] for layer in cache.layers if layer.keys is not None}
        assert min(lengths) < cache.get_seq_length() == inputs["input_ids"].shape[1]
        del cache
        gc.collect()
        prefilled(built, other)
        for each, question, logits in zip(copies, QUESTIONS, expected, strict=False):
            assert torch.equal(ask(built, question, each), logits)
        prefilled(built, other)
        assert torch.equal(reply(built, inputs, QUESTIONS[0], copies[2], whole=True), said)
        assert torch.equal(reply(built, inputs, QUESTIONS[0], copies[3], whole=False), alone)
        assert torch.equal(ask(built, QUESTIONS[1], shallow), expected[1])
        assert torch.equal(ask(built, QUESTIONS[1], pickle.loads(stored)), expected[1])
    assert torch.equal(said, alone)
    assert len(session.records) == 8
    with pruned(built.model, chosen(BOTH), ratio=0.5):  # a later session of the same kind
        assert torch.equal(ask(built, QUESTIONS[1], pickle.loads(stored)), expected[1])


@everyone
@torch.no_grad()
def test_samples_of_a_cache_move_with_what_was_pruned(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    samples = [Sample(images=1, seed=2), Sample(images=1, seed=3)]
    if not built.family.pads_images:
        samples[1] = Sample(images=1, seed=6)
    pair = torch.cat([QUESTIONS[0], QUESTIONS[0] + 4])
    with pruned(built.model, chosen(BOTH), ratio=0.5):
        cache = prefilled(built, *samples)
        moved = {kind: copy.deepcopy(cache) for kind in ("reordered", "selected", "masked", "repeated")}
        expected = ask(built, pair, cache)
        moved["reordered"].reorder_cache(torch.tensor([1, 0]))
        close(ask(built, pair.flip(0), moved["reordered"]), expected.flip(0))
        moved["selected"].batch_select_indices(torch.tensor([1]))
        close(ask(built, pair[1:], moved["selected"]), expected[1:])
        moved["masked"].batch_select_indices(torch.tensor([True, False]))
        close(ask(built, pair[:1], moved["masked"]), expected[:1])
        moved["repeated"].batch_repeat_interleave(2)
        close(ask(built, pair.repeat_interleave(2, 0), moved["repeated"]), expected.repeat_interleave(2, 0))
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


@everyone
@torch.no_grad()
def test_text_after_a_pruned_prompt_can_be_cropped(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    sample = Sample(images=1, seed=2)
    taken_back = crops(built, sample)
    with pruned(built.model, chosen(BOTH), ratio=0.5):
        cache = prefilled(built, sample)
        expected = ask(built, QUESTIONS[0], copy.deepcopy(cache))
        with pytest.raises(IncompatibleError, match="reach into a prompt that was pruned"):
            copy.deepcopy(cache).crop(-cache.get_seq_length() + 1)
        if not taken_back:
            return
        length = cache.get_seq_length()
        ask(built, QUESTIONS[1], cache)
        cache.crop(-QUESTIONS[1].shape[1])
        assert cache.get_seq_length() == length
        close(ask(built, QUESTIONS[0], cache), expected)


@everyone
@torch.no_grad()
def test_a_pruned_cache_is_refused_where_nobody_knows_what_is_gone(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    sample = Sample(images=1, seed=2)
    inputs = built.inputs(sample)
    with pruned(built.model, chosen(BOTH), ratio=0.5):
        cache = prefilled(built, sample)
        before = copy.deepcopy(cache)
        stored = pickle.dumps(cache)
    loaded = pickle.loads(stored)
    for each, why in ((cache, "its session ended"), (before, "its session ended"), (loaded, "belongs to no session")):
        for use in (copy.deepcopy(each), each):
            with pytest.raises(IncompatibleError, match=why):
                ask(built, QUESTIONS[0], use)
            with pytest.raises(IncompatibleError, match=why):
                reply(built, inputs, QUESTIONS[0], use, whole=True)
    with pruned(built.model, chosen(("input",)), ratio=0.5), pytest.raises(IncompatibleError, match="not by"):
        ask(built, QUESTIONS[0], before)
    compact = pruned(built.model, chosen(BOTH), ratio=0.5, positions="compact")
    with compact, pytest.raises(IncompatibleError, match="positions `keep`, not `compact`"):
        ask(built, QUESTIONS[0], before)
    cache.reset()
    assert torch.equal(ask(built, QUESTIONS[0], cache), built.model(QUESTIONS[0]).logits)  # empty: a stock cache again
