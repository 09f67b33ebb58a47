"""bfloat16: pruning changes nothing where all is kept, and costs no more precision than masking does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.pruners import ByContent
from tests.families.proving import BOTH, Zoo, everyone, everywhere, fixed, said, samples
from tokenprune.engine import pruned
from tokenprune.families.lookup import parts_of
from tokenprune.testing.conformance.masking import gone_by_layer, masked


def rounded(inputs: Any) -> dict[str, Any]:
    """A batch with its pictures in bfloat16; the batch itself is left as it is."""
    return {name: each.to(torch.bfloat16) if each.is_floating_point() else each for name, each in inputs.items()}


@everyone
def test_keep_all_is_bit_identical_in_bfloat16(zoo: Zoo, name: str) -> None:
    built = zoo(name, dtype=torch.bfloat16)
    inputs = rounded(built.inputs(*samples(built)))
    with torch.no_grad():
        logits, greedy = built.model(**inputs).logits, said(built, inputs, 3)
        assert logits.dtype == torch.bfloat16
        with pruned(built.model, ByContent(BOTH), ratio=1.0) as session:
            assert torch.equal(built.model(**inputs).logits, logits)
            kept = said(built, inputs, 3)
    assert session.records[0].final() == session.records[0].original_visual_tokens
    assert torch.equal(kept.sequences, greedy.sequences)
    for found, expected in zip(kept.logits, greedy.logits, strict=True):
        assert torch.equal(found, expected)


def assert_as_precise_as_masking(zoo: Zoo, name: str, kernel: str, sites: tuple[str, ...]) -> None:
    """On average over all logits, pruned and masked are equally far from float32, and no farther from each other."""
    exact, half = zoo(name, kernel), zoo(name, kernel, torch.bfloat16)
    inputs = exact.inputs(*samples(exact))
    parts = parts_of(half.model)
    with torch.no_grad():
        with pruned(half.model, fixed(sites), positions="keep") as session:
            found, out = half.model(**rounded(inputs)).logits.float(), said(half, rounded(inputs), 2)
        gone = gone_by_layer(parts, inputs, session.records[0])
        with masked(parts, gone):
            rough, reply = half.model(**rounded(inputs)).logits.float(), said(half, rounded(inputs), 2)
        with masked(parts_of(exact.model), gone):
            precise = exact.model(**inputs).logits
    assert session.records[0].final() == session.records[1].final()
    assert session.records[0].final() < session.records[0].original_visual_tokens
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    error, size = (rough - precise)[rows].abs().mean(), precise[rows].abs().mean()
    assert (found - precise)[rows].abs().mean() <= 1.5 * error + 1e-3 * size
    assert (found - rough)[rows].abs().mean() <= 1.5 * error + 1e-3 * size
    first, expected = out.logits[0].float(), reply.logits[0].float()
    assert (first - expected).abs().mean() <= 2 * error + 1e-3 * size


@everyone
def test_bfloat16_costs_no_more_than_masking(zoo: Zoo, name: str) -> None:
    assert_as_precise_as_masking(zoo, name, "sdpa", BOTH)


@pytest.mark.slow
@everyone
@everywhere
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_bfloat16_costs_no_more_than_masking_at_every_site(
    zoo: Zoo, name: str, kernel: str, sites: tuple[str, ...]
) -> None:
    assert_as_precise_as_masking(zoo, name, kernel, sites)
