"""The stock model on a prompt that already has fewer visual tokens, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.families.evenly import PLAIN, EvenlySpaced
from tests.families.zoo import FAMILIES, Built
from tokenprune.budget import Budget
from tokenprune.engine import pruned
from tokenprune.engine.short_prompt import shorter_prompt
from tokenprune.engine.timestamps import timestamps_of
from tokenprune.families.lookup import parts_of

REFUSED = ("qwen3_5", "lfm2_vl", "mllama")
NEW = 3

Zoo = Callable[[str], Built]


def generate(model: Any, inputs: Any) -> Any:
    return model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
    )


@pytest.mark.parametrize("name", PLAIN)
def test_it_says_what_a_cut_at_the_llm_input_says(zoo: Zoo, name: str) -> None:
    """The engine, made to keep the same tokens and to number positions anew."""
    built = zoo(name)
    inputs, parts = built.inputs(), parts_of(built.model)
    half = Budget(tokens=parts.visuals(inputs)[0].tokens // 2)
    with pruned(built.model, EvenlySpaced(), half, positions="compact") as session:
        expected = generate(built.model, inputs)
    with shorter_prompt(parts, inputs, session.last.final()[0]):
        found = generate(built.model, inputs)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_it_has_the_length_of_the_shorter_prompt(zoo: Zoo, name: str) -> None:
    """With windows, chunks, positions of several axes and features of several encoder layers, too."""
    built = zoo(name)
    inputs, parts = built.inputs(), parts_of(built.model)
    tokens = sum(visual.tokens for visual in parts.visuals(inputs))
    text = inputs["input_ids"].shape[1] - tokens
    for kept in (1, tokens // 2):
        with shorter_prompt(parts, inputs, kept), timestamps_of(parts, lambda: None) as moments:
            found = generate(built.model, inputs)
        assert all(torch.isfinite(logits).all() for logits in found.logits)
        widest = max(layer.keys.shape[2] for layer in found.past_key_values.layers if layer.keys is not None)
        assert widest == text + kept + NEW - 1
        assert (len(moments.encoder), len(moments.forward)) == (1, NEW)
