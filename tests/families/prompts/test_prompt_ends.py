"""Prompts that end in a picture: its last token gives the answer, so it stays whatever a pruner drops."""

from __future__ import annotations

import pytest
import torch

from tests.engine.pruners import Averaging, First
from tests.families.prompts.prompt_ends import ending_in_pictures
from tests.families.proving import BOTH, Zoo, assert_equal_to_masked, chosen, close, everyone, samples, slots_of
from tests.families.zoo import Sample
from tokenprune.engine import pruned
from tokenprune.families.lookup import parts_of
from tokenprune.testing.conformance.masking import gone_by_layer, masked


@everyone
def test_padded_on_the_left_pruned_equals_masked(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    assert_equal_to_masked(built, ending_in_pictures(built, samples(built)), chosen(BOTH, First), count=3)


@everyone
def test_padded_on_the_right_pruned_equals_masked(zoo: Zoo, name: str) -> None:
    """The last token before the padding gives the answer; in some families it only separates rows of patches."""
    built = zoo(name)
    inputs = ending_in_pictures(built, samples(built), padding="right")
    valid = inputs["attention_mask"].bool()
    parts = parts_of(built.model)
    ends = valid.sum(dim=1) - 1
    with torch.no_grad():
        with pruned(built.model, chosen(BOTH, First), positions="keep") as session:
            found = built.model(**inputs).logits
        gone = gone_by_layer(parts, inputs, session.last)
        with masked(parts, gone):
            expected = built.model(**inputs).logits
    rows = valid & ~gone[-1]
    assert rows.gather(1, ends[:, None]).all()
    visual = {(sample, int(slots[-1])) for (sample, _), slots in slots_of(built, inputs).items()}
    assert sum(unit.held for unit in session.last.units) == 2 * len(visual & set(enumerate(ends.tolist())))
    close(found[rows], expected[rows])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_merged_and_weighed_rows_stand_before_the_last_token(zoo: Zoo, name: str, positions: str) -> None:
    built = zoo(name)
    inputs = ending_in_pictures(built, [Sample(images=2), Sample(images=1, seed=3)])
    picker = Averaging(("layer:1",), ratios=(0.25,), weighted=True, reverse=False)
    assert_equal_to_masked(built, inputs, picker, positions=positions)


def test_the_record_says_what_stayed_against_the_answer(zoo: Zoo) -> None:
    built = zoo("llava")
    inputs = ending_in_pictures(built, [Sample(images=2), Sample(images=1, seed=3)])
    with torch.no_grad(), pruned(built.model, chosen(BOTH, First)) as session:
        built.model(**inputs)
    assert [(unit.sample, unit.image, unit.asked, unit.kept, unit.held) for unit in session.last.units] == [
        (0, 0, 8, 8, False),
        (0, 1, 8, 9, True),
        (1, 0, 8, 9, True),
        (0, 0, 4, 4, False),
        (0, 1, 4, 5, True),
        (1, 0, 4, 5, True),
    ]
    assert session.last.visual_tokens == ((17, 17, 9, 9), (9, 9, 5, 5))
    assert session.last.units[1].indices == (*range(8), 15)
