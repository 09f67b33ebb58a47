"""Which pixels are those of a unit: what changes with one picture or video."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tests.families.zoo.base as zoo_base
from tests.families.described import SEEN, Zoo, units
from tests.families.zoo import Built, Sample
from tokenprune.families.family import Visual

described = pytest.mark.parametrize("name", SEEN)
with_videos = pytest.mark.parametrize("name", [name for name, family in SEEN.items() if family.videos])


def changed_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Rows of the tensors of pixels that differ."""
    return {
        (name, int(row))
        for name in before
        if name.startswith("pixel_values")
        for row in (before[name] != after[name]).flatten(1).any(dim=1).nonzero()[:, 0]
    }


def own_rows(units: list[Visual], inputs: Mapping[str, Any]) -> list[set[tuple[str, int]]]:
    """Rows of the tensors of pixels that each unit names; where it names none, the row of its own number."""
    (first, *_) = [name for name in inputs if name.startswith("pixel_values")]
    if any(unit.pixels is None for unit in units):
        assert len(inputs[first]) == len(units)
    places = [unit.pixels or (first, index, index + 1) for index, unit in enumerate(units)]
    return [{(name, row) for row in range(start, stop)} for name, start, stop in places]


@described
@pytest.mark.parametrize("which", [0, 1, 2])
def test_pixels_are_those_of_the_picture(name: str, which: int, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo(name)
    samples = (Sample(images=2), Sample(images=1, seed=1))
    before = built.inputs(*samples)
    drawn = zoo_base.picture
    made: list[int] = []

    def other(seed: int, index: int, sizes: Any) -> Image.Image:
        made.append(0)
        shown = drawn(seed, index, sizes)
        return Image.fromarray(255 - np.asarray(shown)) if len(made) == which + 1 else shown

    monkeypatch.setattr(zoo_base, "picture", other)
    after = built.inputs(*samples)
    found = units(built, before)
    assert found == units(built, after)
    changed = changed_rows(before, after)
    owned = own_rows(found, before)
    pictures = _pictures(built, samples, found)
    mine = set().union(*(owned[unit] for unit, picture in enumerate(pictures) if picture == which))
    others = set().union(*(owned[unit] for unit, picture in enumerate(pictures) if picture != which))
    assert changed <= mine
    if name in ("idefics3", "smolvlm"):  # the pictures of a prompt share a row
        assert changed == mine
    else:
        assert changed == mine - others
        assert not mine & others


def _pictures(built: Built, samples: tuple[Sample, ...], found: list[Visual]) -> list[int]:
    """The picture that each unit is a part of, from the units of each prompt with one picture less."""
    counts = []
    for sample in samples:
        so_far = 0
        for images in range(1, sample.images + 1):
            total = len(units(built, built.inputs(dataclasses.replace(sample, images=images))))
            counts.append(total - so_far)
            so_far = total
        if built.family.name == "llava_onevision" and sample.images > 1:
            counts[-sample.images :] = [1] * sample.images  # a single picture has two units, several have one each
    assert sum(counts) == len(found)
    return [picture for picture, count in enumerate(counts) for _ in range(count)]


@with_videos
def test_pixels_are_those_of_the_video(name: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo(name)
    samples = (Sample(images=0, videos=1), Sample(images=0, videos=2, seed=1))
    before = built.inputs(*samples)
    drawn = zoo_base.film
    monkeypatch.setattr(
        zoo_base,
        "film",
        lambda seed, index, frames: (
            255 - drawn(seed, index, frames) if (seed, index) == (1, 0) else drawn(seed, index, frames)
        ),
    )
    after = built.inputs(*samples)
    found = units(built, before)
    each = len(found) // 3
    owned = own_rows(found, before)
    assert changed_rows(before, after) == set().union(*owned[each : 2 * each])
    assert not set().union(*owned[each : 2 * each]) & set().union(*owned[:each], *owned[2 * each :])
