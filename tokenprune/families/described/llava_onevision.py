"""LLaVA-OneVision: a single image in two grids, several images in one grid each, videos in pooled frames.

A single image of a prompt is two units (see `llava_next`); the model scales the fine grid down if it has too many
tokens. If a prompt has several images, each is one coarse grid. Each of them, and each video, ends in a newline token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenprune.families.described.llava import cls_row, refuse_cls_tokens
from tokenprune.families.described.llava_next import coarse_and_fine, fine_grid, picture_rows, with_videos
from tokenprune.families.encoder_rows import EncoderRows, resized
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import Group, in_prompt_order, named_layer, patches_per_side, tensor


def limited(config: Any, fine: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a fine grid after the model has scaled it down to its largest number of tokens."""
    most = int(str(config.vision_aspect_ratio).removeprefix("anyres_max_"))
    ratio = math.sqrt(fine[0] * fine[1] / (most * patches_per_side(config) ** 2))
    # the model does not scale grids that are only a little too large
    return (int(fine[0] // ratio), int(fine[1] // ratio)) if ratio > 1.1 else fine


def with_newline(frames: int, side: int, pixels: tuple[str, int, int]) -> Group:
    """Square frames with one newline token at the end."""
    tokens = frames * side * side
    return (Visual(tokens + 1, (side, side), frames, separators=(tokens,), pixels=pixels),)


def alone(inputs: Mapping[str, Any], pictures: int) -> list[bool]:
    """For each image, whether it is the only one of its prompt."""
    together = inputs.get("batch_num_images")
    if together is None:
        return [True] * pictures
    return [count == 1 for count in (int(many) for many in together) for _ in range(count)]


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Images as one or two grids, depending on the number of images in the prompt; videos in frames.

    Raises:
        IncompatibleError: The CLS row is a visual token, or placeholders and tensors do not match.
    """
    del runs
    refuse_cls_tokens(config)
    side = patches_per_side(config)
    sizes = [] if inputs.get("image_sizes") is None else inputs["image_sizes"].tolist()
    images = [
        coarse_and_fine(side, limited(config, fine_grid(config, size)), row)
        if single
        else with_newline(1, side, ("pixel_values", row, row + 1))
        for row, (size, single) in enumerate(zip(sizes, alone(inputs, len(sizes)), strict=True))
    ]
    videos: list[Group] = []
    if inputs.get("pixel_values_videos") is not None:
        count, frames = tensor(inputs, "pixel_values_videos").shape[:2]
        videos = [
            with_newline(frames, math.ceil(side / 2), ("pixel_values_videos", row, row + 1)) for row in range(count)
        ]
    return in_prompt_order(config, inputs, images, videos)


def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
    """Encoder rows: images and their tiles, then frames; the model scales both by interpolation."""
    given = inputs.get("image_sizes")
    sizes = [] if given is None else given.tolist()
    pictures = picture_rows(config, sizes, alone(inputs, len(sizes)), visuals)
    side = patches_per_side(config)
    frame = resized(torch.arange(side * side).view(side, side), math.ceil(side / 2), math.ceil(side / 2))
    return with_videos(config, inputs, visuals, pictures, frame)


LLAVA_ONEVISION = Family(
    name="llava_onevision",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.vision_tower.encoder.layers",), rows=rows, read_layer=named_layer, cls_row=cls_row
    ),
    placeholders=("image_token_id", "video_token_id"),
    pixels=("pixel_values", "pixel_values_videos"),
    video=True,
)
