"""Images and videos in the order of their placeholders, whatever lies between them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Visual
from tokenprune.families.layouts import Group, equal_grids, in_prompt_order, side_of

TEXT, IMAGE, VIDEO = 1, 7, 8
CONFIG = SimpleNamespace(image_token_id=IMAGE, video_token_id=VIDEO)

items = st.tuples(
    st.sampled_from([IMAGE, VIDEO]), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2)
)


def prompt(
    held: list[tuple[int, list[int], int]], splits: bool
) -> tuple[list[int], dict[int, list[Group]], list[Visual]]:
    """Token ids, the groups of each kind, and the units in order; text between the runs of a unit where it `splits`."""
    ids, groups, order = [TEXT], {IMAGE: [], VIDEO: []}, []
    for number, (kind, sizes, text) in enumerate(held):
        group = [Visual(size, None, pixels=(str(number), 0, 1)) for size in sizes]
        groups[kind].append(group)
        order += group
        for size in sizes:
            ids += [kind] * size + [TEXT] * splits
        ids += [TEXT] * text
    return ids, groups, order


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(items, max_size=6), st.booleans(), st.booleans())
def test_units_come_back_in_the_order_of_the_prompt(
    held: list[tuple[int, list[int], int]], splits: bool, two_samples: bool
) -> None:
    ids, groups, order = prompt(held, splits)
    rows = [ids, ids] if two_samples else [ids]
    many = {kind: found * len(rows) for kind, found in groups.items()}
    found = in_prompt_order(CONFIG, {"input_ids": torch.tensor(rows)}, many[IMAGE], many[VIDEO])
    assert found == order * len(rows)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(items, min_size=1, max_size=6), st.data())
def test_a_placeholder_more_or_less_is_an_error(held: list[tuple[int, list[int], int]], data: st.DataObject) -> None:
    ids, groups, _ = prompt(held, False)
    place = data.draw(st.sampled_from([index for index, token in enumerate(ids) if token != TEXT]))
    for changed in (ids[:place] + ids[place + 1 :], [*ids[:place], ids[place], *ids[place:]]):
        with pytest.raises(IncompatibleError, match="placeholders"):
            in_prompt_order(CONFIG, {"input_ids": torch.tensor([changed])}, groups[IMAGE], groups[VIDEO])


def test_the_error_names_the_image() -> None:
    groups = [[Visual(2, None)], [Visual(3, None)]]
    ids = torch.tensor([[IMAGE, IMAGE, TEXT, IMAGE, IMAGE]])
    with pytest.raises(IncompatibleError, match="image 1 stands for 3 placeholders, but they end after 2"):
        in_prompt_order(CONFIG, {"input_ids": ids}, groups)


def test_grids_of_one_size() -> None:
    assert equal_grids((6, 12), 2, 3) == [Visual(6, (2, 3))] * 3
    with pytest.raises(IncompatibleError, match="7 image placeholders are not a multiple of 2 x 3"):
        equal_grids((7,), 2, 3)


def test_sides_of_squares() -> None:
    assert [side_of(14), side_of((14, 14)), side_of([14, 14])] == [14, 14, 14]
    with pytest.raises(IncompatibleError, match=r"\(14, 28\)"):
        side_of((14, 28))
