"""The generator: seeded, inside the frame, never crowded, unseen handwriting in the test split."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.tasks.scenes.digits import SPLITS, load_bank
from tokenprune.tasks.scenes.generator import (
    COLOURS,
    DIGIT,
    GAP,
    KINDS,
    SHAPES,
    SIZE,
    Scene,
    SceneObject,
    render,
    sample_scene,
)
from tokenprune.tasks.scenes.task import STREAMS

SEEDS = st.integers(min_value=0, max_value=2**31)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_objects_are_inside_and_apart(seed: int) -> None:
    scene = sample_scene(np.random.default_rng(seed), "train")
    assert 1 <= len(scene.objects) <= 8
    for item in scene.objects:
        left, top, right, bottom = item.box
        assert left >= 0
        assert top >= 0
        assert right <= SIZE
        assert bottom <= SIZE
        assert item.kind in KINDS
        assert item.colour in COLOURS
        assert (item.kind == DIGIT) == (item.value >= 0) == (item.sample >= 0)
    for a, b in itertools.combinations(scene.objects, 2):
        assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_same_seed_same_picture(seed: int) -> None:
    one = sample_scene(np.random.default_rng(seed), "test")
    two = sample_scene(np.random.default_rng(seed), "test")
    assert one == two
    assert np.array_equal(render(one), render(two))


@pytest.mark.parametrize("colour", sorted(COLOURS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_painted_in_its_colour(shape: str, colour: str) -> None:
    item = SceneObject(shape, colour, 64.0, 64.0, 10.0, 0.1, COLOURS[colour])
    empty = render(Scene("train", (), 5)).astype(int)
    painted = render(Scene("train", (item,), 5)).astype(int)
    changed = np.abs(painted - empty).sum(-1) > 0
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 50
    assert rows.max() <= 78
    assert columns.min() >= 50
    assert columns.max() <= 78
    assert 60 < changed.sum() < 460
    assert np.abs(painted[64, 64] - COLOURS[colour]).max() <= 1


def test_shapes_look_different() -> None:
    masks = []
    for shape in SHAPES:
        item = SceneObject(shape, "red", 64.0, 64.0, 11.0, 0.0, COLOURS["red"])
        difference = render(Scene("train", (item,), 5)).astype(int) - render(Scene("train", (), 5))
        masks.append(np.abs(difference).sum(-1) > 60)
    for a, b in itertools.combinations(masks, 2):
        overlap = (a & b).sum() / (a | b).sum()
        assert overlap < 0.85


def test_handwriting_of_the_splits_is_disjoint() -> None:
    banks = {split: load_bank(split) for split in SPLITS}
    numbers = {split: set(bank.indices.tolist()) for split, bank in banks.items()}
    pictures = {split: {p.tobytes() for p in bank.images} for split, bank in banks.items()}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not numbers[a] & numbers[b]
        assert not pictures[a] & pictures[b]
    for bank in banks.values():
        assert all(len(bank.of_value(value)) >= 10 for value in range(10))


def test_seeds_of_the_splits_are_disjoint() -> None:
    assert set(STREAMS) == set(SPLITS)
    assert len(set(STREAMS.values())) == len(STREAMS)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="one of train, validation, test"):
        load_bank("dev")
