"""Video-LLaVA: one grid per image; every frame of a video begins with its CLS row, which has no place on the grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.models.family import Family, Visual
from tokenprune.models.layouts import Group, in_prompt_order, patches_per_side, tensor
from tokenprune.models.llava import refuse_cls_tokens

#: Where processors put the images, the older name first.
_IMAGES = ("pixel_values_images", "pixel_values")


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Images as square grids, videos as square frames; the CLS rows of frames are always kept.

    Raises:
        IncompatibleError: The CLS row of images is a visual token, or placeholders and tensors do not add up.
    """
    del runs
    refuse_cls_tokens(config)
    side = patches_per_side(config)
    name = next((name for name in _IMAGES if inputs.get(name) is not None), None)
    images: list[Group] = [
        (Visual(side * side, (side, side), pixels=(name, row, row + 1)),)
        for name in (() if name is None else (name,))
        for row in range(len(inputs[name]))
    ]
    videos: list[Group] = []
    if inputs.get("pixel_values_videos") is not None:
        count, frames = tensor(inputs, "pixel_values_videos").shape[:2]
        length = side * side + 1
        videos = [
            (
                Visual(
                    frames * length,
                    (side, side),
                    frames,
                    separators=tuple(range(0, frames * length, length)),
                    pixels=("pixel_values_videos", row, row + 1),
                ),
            )
            for row in range(count)
        ]
    return in_prompt_order(config, inputs, images, videos)


VIDEO_LLAVA = Family(
    name="video_llava",
    layout=layout,
    placeholders=("image_token_id", "video_token_id"),
    pixels=(*_IMAGES, "pixel_values_videos"),
    video=True,
)
