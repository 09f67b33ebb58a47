"""GLM-4V: as the Qwen-VL families, but frames of videos use the placeholder of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.described.qwen_vl import in_order, packed, packed_rows
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import in_prompt_order, last_layer


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Images or videos by their grids.

    Raises:
        IncompatibleError: The batch has both, which the model does not support, or placeholders and grids do not match.
    """
    del runs
    merge = int(config.vision_config.spatial_merge_size)
    images = packed(inputs, "image", "pixel_values", merge)
    videos = packed(inputs, "video", "pixel_values_videos", merge)
    if images and videos:
        raise IncompatibleError(
            "images and videos in one batch have the same placeholder",
            hint="put images and videos in separate batches",
        )
    return in_prompt_order(config, inputs, images or videos)


GLM4V = Family(
    name="glm4v",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.visual.blocks",),
        rows=packed_rows(in_order),
        read_layer=last_layer,
        norms=("model.visual.post_layernorm",),
    ),
    pixels=("pixel_values", "pixel_values_videos"),
    video=True,
)
