"""Perception LM: the whole image, then square tiles, pooled; videos in frames.

Every tile is one unit with the pixels of its image, because the processor's tensors do not say how tiles are arranged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, Visual
from tokenprune.families.layouts import HINT, Group, in_prompt_order
from tokenprune.families.reasons import UNSEEN_ATTENTION


def side(inputs: Mapping[str, Any], token: int, tiles: int) -> int:
    """Tokens along one side of a tile or frame, from the counts: the processor's tensors do not hold the size.

    Raises:
        IncompatibleError: The placeholders do not fill equal squares.
    """
    placeholders = int((inputs["input_ids"] == token).sum())
    found = math.isqrt(placeholders // tiles)
    if found * found * tiles != placeholders:
        raise IncompatibleError(f"{placeholders} placeholders are not {tiles} equal squares", hint=HINT)
    return found


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile of an image is one grid; a video is one unit of frames.

    Raises:
        IncompatibleError: Placeholders and tensors do not match.
    """
    del runs
    images: list[Group] = []
    videos: list[Group] = []
    if inputs.get("pixel_values") is not None:
        count, tiles = inputs["pixel_values"].shape[:2]
        edge = side(inputs, config.image_token_id, count * tiles)
        images = [
            (Visual(edge * edge, (edge, edge), pixels=("pixel_values", row, row + 1)),) * tiles for row in range(count)
        ]
    if inputs.get("pixel_values_videos") is not None:
        count, frames = inputs["pixel_values_videos"].shape[:2]
        edge = side(inputs, config.video_token_id, count * frames)
        videos = [
            (Visual(frames * edge * edge, (edge, edge), frames, pixels=("pixel_values_videos", row, row + 1)),)
            for row in range(count)
        ]
    return in_prompt_order(config, inputs, images, videos)


PERCEPTION_LM = Family(
    name="perception_lm",
    layout=layout,
    blind=UNSEEN_ATTENTION,
    placeholders=("image_token_id", "video_token_id"),
    pixels=("pixel_values", "pixel_values_videos"),
    video=True,
)
