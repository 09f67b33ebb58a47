"""Padding on either side, and prompts with unequal numbers of pictures, some without any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.proving import (
    BOTH,
    PRUNED,
    Zoo,
    at_every_site,
    chosen,
    close,
    everyone,
    said,
    samples,
)
from tests.families.zoo import FAMILIES, Built, Sample
from tokenprune.engine import pruned
from tokenprune.families.lookup import parts_of
from tokenprune.testing.conformance.masking import gone_by_layer, masked

STEPS = 3


def prefill_and_steps(built: Built, inputs: Any, tokens: Tensor) -> list[Tensor]:
    """Logits of a prompt, and of tokens (steps, B) decoded after it, as `forward` gives them."""
    seen, mask = built.model(**inputs, use_cache=True), inputs["attention_mask"]
    found = [seen.logits]
    for step in tokens:
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        told = {"input_ids": step[:, None], "attention_mask": mask}
        deltas = getattr(parts_of(built.model).base, "rope_deltas", None)
        if deltas is not None:  # by itself, such a model numbers the whole mask
            places = mask.sum(dim=1, keepdim=True) - 1 + deltas
            told["position_ids"] = places.expand(3, -1, -1)
        seen = built.model(**told, past_key_values=seen.past_key_values, use_cache=True)
        found.append(seen.logits)
    return found


@everyone
@at_every_site
def test_padded_on_the_right_pruned_equals_masked(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built), padding="right")
    valid = inputs["attention_mask"].bool()
    assert not valid[:, -1].all()
    tokens = torch.tensor([[5, 6, 7, 8]] * STEPS)[:, : len(valid)]
    with torch.no_grad():
        with pruned(built.model, chosen(sites), positions="keep") as session:
            found = prefill_and_steps(built, inputs, tokens)
        gone = gone_by_layer(parts_of(built.model), inputs, session.last)
        with masked(parts_of(built.model), gone):
            expected = prefill_and_steps(built, inputs, tokens)
    rows = valid & ~gone[-1]
    close(found[0][rows], expected[0][rows])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        close(ours, theirs)


@everyone
def test_both_paddings_give_what_a_single_prompt_gives(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    many = samples(built)
    left, right = built.inputs(*many), built.inputs(*many, padding="right")
    for policy in ("keep", "compact"):
        with torch.no_grad(), pruned(built.model, chosen(BOTH), positions=policy):
            at_left, at_right = built.model(**left).logits, built.model(**right).logits
            for row, sample in enumerate(many):
                alone = built.model(**built.inputs(sample)).logits[0]
                close(at_left[row, left["attention_mask"][row].bool()], alone)
                close(at_right[row, right["attention_mask"][row].bool()], alone)


@everyone
def test_generate_goes_on_from_the_right_padding_as_far_as_the_stock_model_does(zoo: Zoo, name: str) -> None:
    """It takes the last column for the end of every prompt: true for the longest only."""
    built = zoo(name)
    left, right = built.inputs(*samples(built)), built.inputs(*samples(built), padding="right")
    whole = right["attention_mask"].bool()[:, -1]
    with torch.no_grad():
        stock = [said(built, inputs, 2).logits[0] for inputs in (left, right)]
        with pruned(built.model, chosen(BOTH), positions="keep") as session:
            out = said(built, right, STEPS)
        with masked(parts_of(built.model), gone_by_layer(parts_of(built.model), right, session.last)):
            expected = said(built, right, STEPS)
    assert not torch.allclose(stock[0][~whole], stock[1][~whole], atol=1e-2)
    for step in range(STEPS):
        close(out.logits[step][whole], expected.logits[step][whole])


@everyone
def test_a_prompt_without_pictures_is_as_if_alone(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    many = [Sample(images=0, seed=4), Sample(images=2), Sample(images=0, seed=2), Sample(images=1, seed=1)]
    alone = [sample for sample in many if sample.images or built.family.text_only]
    with torch.no_grad(), pruned(built.model, chosen(BOTH), positions="compact") as session:
        together = said(built, built.inputs(*many), STEPS)
        singles = [said(built, built.inputs(sample), STEPS) for sample in alone]
    for single, row in zip(singles, [row for row, sample in enumerate(many) if sample in alone], strict=True):
        for step in range(STEPS):
            close(together.logits[step][row], single.logits[step][0])
    final = session.records[0].final()
    assert (final[0], final[2]) == (0, 0)
    assert min(final[1], final[3]) > 0


@pytest.mark.parametrize("name", [name for name in PRUNED if not FAMILIES[name].text_only])
def test_the_stock_processor_takes_no_batch_without_pictures(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    with pytest.raises(ValueError, match="`images` are expected"):
        built.inputs(Sample(images=0))


def test_every_family_takes_prompts_without_pictures_beside_others() -> None:
    assert [name for name in PRUNED if not FAMILIES[name].unequal] == []
