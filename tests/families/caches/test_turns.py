"""Several turns on one cache: text after a pruned prompt, and another picture after that."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.proving import BOTH, Zoo, at_every_site, chosen, close, everyone, renumbered, said
from tests.families.zoo import Built, Sample
from tokenprune.engine import pruned
from tokenprune.families.lookup import parts_of
from tokenprune.testing.conformance.masking import gone_by_layer, masked

MORE = torch.tensor([[5, 6, 7, 8, 9]])
#: Families whose stock masks look up the kinds of all tokens by their places in the cache, and by which name.
KINDS = {"gemma3": "token_type_ids", "gemma4": "mm_token_type_ids", "paligemma": "token_type_ids"}


def turn(built: Built, inputs: Any, cache: Any) -> Tensor:
    """Logits of a turn on a cache; without a mask, of which some stock models number the positions."""
    told = {name: value for name, value in inputs.items() if name != "attention_mask"}
    logits: Tensor = built.model(**told, past_key_values=cache, use_cache=True).logits
    return logits


@everyone
@at_every_site
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_text_after_a_pruned_prompt(zoo: Zoo, name: str, sites: tuple[str, ...], positions: Any) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=1, seed=2))
    parts = parts_of(built.model)

    def conversation() -> list[Tensor]:
        cache = built.model(**inputs, use_cache=True).past_key_values
        return [turn(built, {"input_ids": ids}, cache) for ids in (MORE, MORE[:, :1])]

    with torch.no_grad():
        with pruned(built.model, chosen(sites), positions=positions) as session:
            found = conversation()
        gone = gone_by_layer(parts, inputs, session.last)
        with contextlib.ExitStack() as stack:
            stack.enter_context(masked(parts, gone))
            if positions == "compact":
                stack.enter_context(renumbered(built, gone, inputs["attention_mask"].bool()))
            expected = conversation()
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)


@everyone
@at_every_site
def test_another_picture_after_a_pruned_prompt(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    built = zoo(name)
    first, second = built.inputs(Sample(images=1, seed=2)), built.inputs(Sample(images=1, seed=5))
    if name in KINDS:
        second[KINDS[name]] = torch.cat([first[KINDS[name]], second[KINDS[name]]], dim=1)
    parts = parts_of(built.model)
    with torch.no_grad():
        with pruned(built.model, chosen(sites), positions="keep") as session:
            cache = built.model(**first, use_cache=True).past_key_values
            found = [turn(built, inputs, cache) for inputs in (second, {"input_ids": MORE})]
        gone = [
            gone_by_layer(parts, inputs, record)
            for inputs, record in zip((first, second), session.records, strict=True)
        ]
        with masked(parts, gone[0]):
            cache = built.model(**first, use_cache=True).past_key_values
        with masked(parts, torch.cat(gone, dim=2)):
            expected = [turn(built, inputs, cache) for inputs in (second, {"input_ids": MORE})]
    assert gone[1].any()
    rows = ~gone[1][-1]
    close(found[0][rows], expected[0][rows])
    close(found[1], expected[1])


@everyone
def test_generate_goes_on_with_a_pruned_cache(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=1, seed=2))
    parts = parts_of(built.model)

    def conversation() -> list[Tensor]:
        """Logits of an answer, and of a second one to a turn of text."""
        first = said(built, inputs, 3)
        told = torch.cat([first.sequences, MORE], dim=1)
        mask = torch.ones_like(told)
        cache = first.past_key_values
        again = built.model.generate(
            input_ids=told,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=3,
            min_new_tokens=3,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return [*first.logits, *again.logits]

    with torch.no_grad():
        with pruned(built.model, chosen(BOTH), positions="keep") as session:
            found = conversation()
        with masked(parts, gone_by_layer(parts, inputs, session.last)):
            expected = conversation()
    assert len(session.records) == 1
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
