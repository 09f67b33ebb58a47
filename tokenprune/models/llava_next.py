"""LLaVA-NeXT and LLaVA-NeXT-Video: the whole picture as one grid, then its tiles as one grid with newline tokens.

A picture is two units: the coarse grid, and the fine grid that the model stitches of the tiles and crops to the
picture's aspect. A budget counts for each of them. Pooled frames of a video are one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenprune.models.family import Family, Visual
from tokenprune.models.layouts import Group, in_prompt_order, patches_per_side, tensor
from tokenprune.models.llava import refuse_cls_tokens


def fine_grid(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the stitched tiles of a picture of a size (height, width), by the model's own arithmetic."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    side = patches_per_side(config)
    tiles = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, config.vision_config.image_size)
    _, rows, columns = unpad_image(torch.empty(0, tiles[0] * side, tiles[1] * side), tuple(size)).shape
    return int(rows), int(columns)


def coarse_and_fine(side: int, fine: tuple[int, int], row: int) -> Group:
    """A picture in two grids; every row of the fine one ends in a newline token."""
    rows, columns = fine
    ends = tuple(range(columns, rows * (columns + 1), columns + 1))
    place = ("pixel_values", row, row + 1)
    return (
        Visual(side * side, (side, side), pixels=place),
        Visual(rows * (columns + 1), fine, separators=ends, pixels=place),
    )


def tiled(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every picture is a coarse and a fine grid, every video its pooled frames.

    Raises:
        IncompatibleError: The CLS row is a visual token, or placeholders and tensors do not add up.
    """
    del runs
    refuse_cls_tokens(config)
    side = patches_per_side(config)
    sizes = inputs.get("image_sizes")
    images = [
        coarse_and_fine(side, fine_grid(config, size), row)
        for row, size in enumerate([] if sizes is None else sizes.tolist())
    ]
    videos: list[Group] = []
    if inputs.get("pixel_values_videos") is not None:
        count, frames = tensor(inputs, "pixel_values_videos").shape[:2]
        pooled = side // int(config.spatial_pool_stride)
        videos = [
            (Visual(frames * pooled * pooled, (pooled, pooled), frames, pixels=("pixel_values_videos", row, row + 1)),)
            for row in range(count)
        ]
    return in_prompt_order(config, inputs, images, videos)


LLAVA_NEXT = Family(name="llava_next", layout=tiled)

LLAVA_NEXT_VIDEO = Family(
    name="llava_next_video",
    layout=tiled,
    placeholders=("image_token_id", "video_token_id"),
    pixels=("pixel_values", "pixel_values_videos"),
    video=True,
)
