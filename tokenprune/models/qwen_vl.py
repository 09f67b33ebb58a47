"""The Qwen-VL families: images of any aspect in packed patches, merged two by two; videos in frames.

In Qwen3 every frame of a video has a run of placeholders of its own, with its time written before it. The frames
are one unit all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.models.family import Family, Visual
from tokenprune.models.layouts import Group, in_prompt_order
from tokenprune.models.reasons import LINEAR_ATTENTION, everywhere


def packed(inputs: Mapping[str, Any], kind: str, pixels: str, merge: int) -> list[Group]:
    """Images or videos by their grids of patches (frames, rows, columns), whose pixels lie packed in one tensor.

    Args:
        inputs: The processor's tensors.
        kind: `image` or `video`.
        pixels: The tensor of their pixels.
        merge: Patches that make one token, along a side.
    """
    grids = inputs.get(f"{kind}_grid_thw")
    found: list[Group] = []
    start = 0
    for frames, high, wide in [] if grids is None else grids.tolist():
        grid = (high // merge, wide // merge)
        stop = start + frames * high * wide
        found.append((Visual(frames * grid[0] * grid[1], grid, frames, pixels=(pixels, start, stop)),))
        start = stop
    return found


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Images and videos by their grids.

    Raises:
        IncompatibleError: Placeholders and grids do not add up.
    """
    del runs
    merge = int(config.vision_config.spatial_merge_size)
    return in_prompt_order(
        config,
        inputs,
        packed(inputs, "image", "pixel_values", merge),
        packed(inputs, "video", "pixel_values_videos", merge),
    )


def _family(name: str, refused: Mapping[str, str] | None = None) -> Family:
    return Family(
        name=name,
        layout=layout,
        placeholders=("image_token_id", "video_token_id"),
        pixels=("pixel_values", "pixel_values_videos"),
        video=True,
        refused=refused or {},
    )


QWEN2_VL = _family("qwen2_vl")
QWEN2_5_VL = _family("qwen2_5_vl")
QWEN3_VL = _family("qwen3_vl")
QWEN3_VL_MOE = _family("qwen3_vl_moe")
QWEN3_5 = _family("qwen3_5", everywhere(LINEAR_ATTENTION))
