"""The controls: what they keep, and that a real model runs with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tokenprune.baselines import GridPruning, RandomPruning
from tokenprune.baselines.coarser_grid import coarser_grid
from tokenprune.engine import pruned

SAMPLES = [prompt(1), prompt(2, images=2), prompt(3, text=11)]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 1600))
def test_coarser_grid_never_exceeds_the_budget(rows: int, columns: int, keep: int) -> None:
    cells = coarser_grid((rows, columns), keep)
    assert 1 <= cells[0] <= rows
    assert 1 <= cells[1] <= columns
    assert cells[0] * cells[1] <= max(1, keep)


@pytest.mark.parametrize(("keep", "cells"), [(64, (8, 8)), (128, (11, 11)), (28, (5, 5)), (14, (4, 3)), (2, (2, 1))])
def test_coarser_grid_of_a_square(keep: int, cells: tuple[int, int]) -> None:
    assert coarser_grid((16, 16), keep) == cells


def test_random_depends_on_seed_and_content_alone(model: Any) -> None:
    def indices(seed: int, samples: Any) -> list[tuple[int, ...]]:
        with pruned(model, RandomPruning(seed=seed), tokens=5) as session:
            model(**batch(samples))
        return [unit.indices for unit in session.last.units]

    state = torch.random.get_rng_state()
    together = indices(0, SAMPLES)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert together == indices(0, SAMPLES)
    assert [each for sample in SAMPLES for each in indices(0, [sample])] == together
    assert indices(1, SAMPLES) != together
    assert len(set(together)) == len(together)


def test_random_is_uniform(model: Any) -> None:
    counts = torch.zeros(16)
    for seed in range(150):
        with pruned(model, RandomPruning(seed=seed), tokens=4) as session:
            model(**batch(SAMPLES[:1]))
        counts[list(session.last.units[0].indices)] += 1
    assert counts.sum() == 600
    expected = 150 * 4 / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi-squared, 15 degrees of freedom, p = 0.001


@pytest.mark.parametrize("keep", [1, 3, 4, 7, 9, 16])
@pytest.mark.parametrize("spacing", ["cells", "raster"])
def test_grid_keeps_exactly_k_and_spreads(model: Any, keep: int, spacing: Any) -> None:
    with pruned(model, GridPruning(spacing=spacing), tokens=keep) as session:
        model(**batch(SAMPLES))
    units = session.last.units
    assert {len(unit.indices) for unit in units} == {keep}
    assert len({unit.indices for unit in units}) == 1
    if keep == 4 and spacing == "cells":
        assert units[0].indices == (5, 7, 13, 15)


@pytest.mark.parametrize(("keep", "counts"), [(2, [1, 1]), (8, [4, 4]), (18, [9, 9]), (20, [10, 10])])
def test_grid_shares_a_video_among_its_frames(model: Any, keep: int, counts: list[int]) -> None:
    video = batch([prompt(7, images=2)])
    with pruned(model, GridPruning(), tokens=keep, frames=True) as session:
        model(**video)
    (unit,) = session.last.units
    assert [sum(index // TOKENS == frame for index in unit.indices) for frame in range(2)] == counts


def test_pooling_averages_the_embeddings(model: Any) -> None:
    inputs = batch(SAMPLES[:1])
    taken: list[torch.Tensor] = []
    layers = model.model.language_model.layers
    with pruned(model, "avgpool", tokens=4) as session:
        handle = layers[0].register_forward_pre_hook(lambda module, args: taken.append(args[0]))
        model(**inputs)
        handle.remove()
    projected = model.model.multi_modal_projector(
        model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    )
    cells = projected.reshape(2, 2, 2, 2, -1).mean(dim=(1, 3)).reshape(4, -1)
    before = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    assert session.last.units[0].merged
    assert session.last.entering() == (4,)
    torch.testing.assert_close(taken[0][0, before : before + 4], cells, atol=1e-5, rtol=1e-5)


def test_downsampling_equals_a_smaller_picture(model: Any) -> None:
    """The kept embeddings are those that the tower makes of the resized picture."""
    inputs = batch(SAMPLES[:1])
    embeddings: list[torch.Tensor] = []
    layer = model.model.language_model.layers[0]
    with pruned(model, "downsample", tokens=4) as session:
        handle = layer.register_forward_pre_hook(
            lambda module, args, kwargs: embeddings.append(args[0]), with_kwargs=True
        )
        model(**inputs)
        generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        handle.remove()
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3
    smaller = torch.nn.functional.interpolate(inputs["pixel_values"], size=(16, 16), mode="bicubic", antialias=True)
    hidden = model.model.vision_tower(smaller, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    expected = model.model.multi_modal_projector(hidden[-2][:, 1:])
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    before = int(slots[0])
    torch.testing.assert_close(embeddings[0][0, before : before + 4], expected[0], atol=1e-5, rtol=1e-5)
    assert session.last.units[0].indices == (5, 7, 13, 15)
