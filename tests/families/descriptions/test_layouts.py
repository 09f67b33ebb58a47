"""Placeholders, grids and separators of every family, against what the model does with a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tests.families.zoo.base as zoo_base
from tests.families.described import SEEN, Zoo, embedded, parts, units
from tests.families.zoo import Family, Sample
from tokenprune.errors import IncompatibleError

described = pytest.mark.parametrize("name", SEEN)
with_videos = pytest.mark.parametrize("name", [name for name, family in SEEN.items() if family.videos])


S16 = [(4, 4)]
GRIDS: dict[str, list[tuple[int, int]]] = {
    # a picture of 40 x 56 and one of 64 x 32, in grids of rows x columns
    "aya_vision": S16 * 8,
    "fast_vlm": S16 * 2,
    "gemma3": S16 * 2,
    "gemma4": [(7, 9), (11, 5)],
    "glm4v": [(4, 6), (8, 4)],
    "idefics3": S16 * 8,
    "internvl": S16 * 8,
    "lfm2_vl": [*S16 * 4, (3, 4), (5, 2)],
    "llama4": S16 * 8,
    "llava": S16 * 2,
    "llava_next": [(4, 4), (6, 8), (4, 4), (8, 4)],
    "llava_next_video": [(4, 4), (6, 8), (4, 4), (8, 4)],
    "llava_onevision": S16 * 2,
    "mistral3": [(5, 7), (8, 4)],
    "ovis2": S16 * 8,
    "paligemma": S16 * 2,
    "perception_lm": S16 * 10,
    "qwen2_5_vl": [(5, 7), (8, 4)],
    "qwen2_vl": [(5, 7), (8, 4)],
    "qwen3_5": [(5, 7), (8, 4)],
    "qwen3_vl": [(5, 7), (8, 4)],
    "qwen3_vl_moe": [(5, 7), (8, 4)],
    "smolvlm": S16 * 8,
    "video_llava": S16 * 2,
    "vipllava": S16 * 2,
}
VIDEOS: dict[str, list[tuple[tuple[int, int], int]]] = {
    # a video of four frames of 40 x 56, as units of a grid and a number of frames
    "gemma4": [((7, 9), 4)],
    "glm4v": [((5, 7), 2)],
    "internvl": [((4, 4), 1)] * 4,
    "llava_next_video": [((2, 2), 4)],
    "llava_onevision": [((2, 2), 4)],
    "perception_lm": [((4, 4), 4)],
    "qwen2_5_vl": [((5, 7), 2)],
    "qwen2_vl": [((5, 7), 2)],
    "qwen3_5": [((5, 7), 2)],
    "qwen3_vl": [((5, 7), 2)],
    "qwen3_vl_moe": [((5, 7), 2)],
    "smolvlm": [((4, 4), 1)] * 4,
    "video_llava": [((4, 4), 4)],
}


def batches(family: Family) -> Iterator[tuple[Sample, ...]]:
    """Two pictures; unequal numbers of them, with left padding; videos; both."""
    yield (Sample(images=2),)
    yield (Sample(images=1), Sample(images=3, seed=1), *([Sample(images=0, seed=2)] if family.unequal else []))
    if family.videos:
        yield (Sample(images=0, videos=1), Sample(images=0, videos=2, seed=1))
        if family.mixes:
            yield (Sample(images=2, videos=1), Sample(images=1, seed=3), Sample(images=0, videos=1, seed=4))


@described
def test_units_add_up_to_the_placeholders_and_grids_to_the_tokens(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    for samples in batches(built.family):
        inputs = built.inputs(*samples)
        found = units(built, inputs)
        mask = parts(built).is_placeholder(inputs["input_ids"])
        assert sum(unit.placeholders for unit in found) == int(mask.sum())
        for unit in found:
            assert unit.grid is not None
            assert unit.tokens == unit.frames * unit.grid[0] * unit.grid[1]
        # no unit lies in two samples
        ends = np.cumsum([unit.placeholders for unit in found]).tolist()
        assert set(np.cumsum(mask.sum(dim=1).numpy()).tolist()) <= {0, *ends}


@described
def test_grids_follow_the_pictures(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    assert built.family.sizes == zoo_base.SIZES or name == "perception_lm"
    found = units(built, built.inputs(Sample(images=2)))
    assert [unit.grid for unit in found] == GRIDS[name]
    assert {unit.frames for unit in found} == {1}


def test_a_single_picture_of_onevision_has_two_grids(zoo: Zoo) -> None:
    built = zoo("llava_onevision")
    found = units(built, built.inputs(Sample(images=1)))
    assert [unit.grid for unit in found] == [(4, 4), (6, 8)]


def test_a_large_picture_of_onevision_is_scaled_down(zoo: Zoo) -> None:
    built = zoo("llava_onevision")
    picture = Image.fromarray(np.zeros((84, 84, 3), np.uint8))
    inputs = built.processor(text=["<image> what"], images=[[picture]], return_tensors="pt")
    assert [unit.grid for unit in units(built, inputs)] == [(4, 4), (8, 8)]  # 12 x 12 are more than four tiles


@with_videos
def test_videos_are_units_of_frames(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    found = units(built, built.inputs(Sample(images=0, videos=1)))
    assert [(unit.grid, unit.frames) for unit in found] == VIDEOS[name]


@pytest.mark.parametrize("name", [name for name, family in SEEN.items() if family.videos and family.mixes])
def test_images_and_videos_stand_in_prompt_order(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    both = built.inputs(Sample(images=1, videos=1), Sample(images=1, seed=1))
    apart = [
        unit
        for sample in (Sample(images=1), Sample(images=0, videos=1), Sample(images=1, seed=1))
        for unit in units(built, built.inputs(sample))
    ]
    shapes = [(unit.grid, unit.frames, unit.separators) for unit in units(built, both)]
    assert shapes == [(unit.grid, unit.frames, unit.separators) for unit in apart]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "llava_next_video"])
def test_separators_are_the_newlines_that_the_model_scatters(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    some = 0
    for samples in batches(built.family):
        inputs = built.inputs(*samples)
        mask = parts(built).is_placeholder(inputs["input_ids"])
        rows = embedded(built, inputs)[mask]
        newline = torch.isclose(rows, built.model.model.image_newline, atol=1e-6).all(dim=1)
        claimed, start = torch.zeros_like(newline), 0
        for unit in units(built, inputs):
            claimed[[start + place for place in unit.separators]] = True
            start += unit.placeholders
        assert torch.equal(newline, claimed)
        some += int(newline.sum())
    assert some


def test_separators_of_video_frames_are_their_cls_rows(zoo: Zoo) -> None:
    built = zoo("video_llava")
    inputs = built.inputs(Sample(images=1, videos=1))
    rows: list[Tensor] = []
    handle = built.model.model.video_tower.register_forward_hook(
        lambda module, args, output: rows.append(output.hidden_states[-2])
    )
    found = embedded(built, inputs)
    handle.remove()
    cls = built.model.model.multi_modal_projector(rows[0][:, 0])
    mask = parts(built).is_placeholder(inputs["input_ids"])
    picture, video = units(built, inputs)
    block = found[mask][picture.placeholders :]
    torch.testing.assert_close(block[list(video.separators)], cls)
    assert picture.separators == ()


@pytest.mark.parametrize("name", [name for name in SEEN if name not in ("llava_next", "llava_next_video")])
def test_other_families_have_no_separators_among_images(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    found = units(built, built.inputs(Sample(images=2)))
    extra = 1 if name == "llava_onevision" else 0
    assert {len(unit.separators) for unit in found} == {extra}


@described
def test_the_base_model_is_called_with_what_the_layout_reads(name: str, zoo: Zoo) -> None:
    """The engine sees the arguments of the base model, not those of the user."""
    built = zoo(name)
    found = parts(built)
    for samples in batches(built.family):
        inputs = built.inputs(*samples)
        calls: list[dict[str, Any]] = []
        handle = found.base.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(dict(kwargs)),  # noqa: B023 - removed in this turn
            with_kwargs=True,
        )
        with torch.no_grad():
            built.model(**inputs)
        handle.remove()
        seen = found.visuals({**calls[0], "input_ids": inputs["input_ids"]})
        expected = found.visuals(inputs)
        if name == "video_llava":  # the older name of the tensor ends at the base model, or does not
            takes = signature(type(found.base).forward).parameters
            own = "pixel_values" if "pixel_values" in takes else "pixel_values_images"
            assert [unit.pixels for unit in seen if unit.frames == 1] == [
                (own, *unit.pixels[1:]) for unit in expected if unit.frames == 1 and unit.pixels
            ]
            seen, expected = ([dataclasses.replace(unit, pixels=None) for unit in many] for many in (seen, expected))
        assert seen == expected


@contextmanager
def blind(model: nn.Module) -> Iterator[None]:
    """Encoders whose attention adds nothing, so that a token shows its own place only."""

    def nothing(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    handles = [
        module.register_forward_hook(nothing)
        for path, module in model.named_modules()
        if ("vision" in path or "visual" in path or "tower" in path)
        and type(module).__name__.lower().endswith(("attention", "attentionrope"))
    ]
    assert handles
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", [name for name in SEEN if name != "fast_vlm"])  # its convolutions see wide
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0)])
def test_tokens_lie_in_raster_order(name: str, corner: tuple[int, int], zoo: Zoo) -> None:
    """What is changed in a corner of the picture changes tokens of that corner of grids, and no others."""
    built = zoo(name)
    # a square of which no processor cuts a border off, and that fills tiles
    shown = np.asarray(zoo_base.picture(0, 0, ((64, 64),))).copy()
    high, wide = shown.shape[:2]
    painted = shown.copy()
    rows = slice(0, high // 8) if corner[0] == 0 else slice(high - high // 8, high)
    columns = slice(0, wide // 8) if corner[1] == 0 else slice(wide - wide // 8, wide)
    painted[rows, columns] = 255 - painted[rows, columns]

    def prompt(picture: np.ndarray) -> Any:
        images = [Image.fromarray(picture)]
        made = built.processor(
            text=[built.image_prompt()],
            images=[images] if built.family.nested else images,
            return_tensors="pt",
        ).to(torch.float32)
        made.pop("labels", None)
        return made

    before, after = prompt(shown), prompt(painted)
    with blind(built.model):
        difference = (embedded(built, before) - embedded(built, after)).abs().amax(dim=2)
    mask = parts(built).is_placeholder(before["input_ids"])
    changed = difference[mask] > 1e-4
    start, hit = 0, 0
    for unit in units(built, before):
        tokens = torch.ones(unit.placeholders, dtype=torch.bool)
        tokens[list(unit.separators)] = False
        grid = changed[start : start + unit.placeholders][tokens].view(unit.grid or (0, 0))
        start += unit.placeholders
        for row, column in grid.nonzero().tolist():
            assert (row + 0.5 > grid.shape[0] / 2) == bool(corner[0])
            assert (column + 0.5 > grid.shape[1] / 2) == bool(corner[1])
            hit += 1
    assert hit


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_next", "gemma4", "mistral3"])
def test_placeholders_that_do_not_add_up_are_an_error(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    inputs = dict(built.inputs(Sample(images=2)))
    ids = inputs["input_ids"].clone()
    ids[ids == built.model.config.image_token_id] = 5
    whole = inputs["input_ids"]
    with pytest.raises(IncompatibleError, match="more images than placeholders"):
        units(built, {**inputs, "input_ids": ids})
    with pytest.raises(IncompatibleError, match="placeholders"):
        units(built, {**inputs, "input_ids": torch.cat([whole, whole], dim=1)})
    first = int((whole[0] == built.model.config.image_token_id).nonzero()[0])
    with pytest.raises(IncompatibleError, match="placeholders"):
        units(built, {**inputs, "input_ids": torch.cat([whole[:, :first], whole[:, first + 1 :]], dim=1)})


def test_images_and_videos_of_glm_in_one_batch_are_an_error(zoo: Zoo) -> None:
    built = zoo("glm4v")
    grid = torch.tensor([[1, 4, 4]])
    inputs = {**built.inputs(Sample()), "video_grid_thw": grid}
    with pytest.raises(IncompatibleError, match="same placeholder"):
        units(built, inputs)


def test_mllama_has_no_layout(zoo: Zoo) -> None:
    built = zoo("mllama")
    with pytest.raises(IncompatibleError, match="cross-attention"):
        units(built, built.inputs(Sample()))
