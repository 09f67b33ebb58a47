"""Video-LLaVA: one grid per image; every frame of a video begins with its CLS row, which is not part of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenprune.families.described.llava import cls_row, refuse_cls_tokens
from tokenprune.families.encoder_rows import EncoderRows, Tile, cells, film
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import Group, in_prompt_order, named_layer, patches_per_side, tensor

#: Names of the processor's tensor of images, the older name first.
_IMAGES = ("pixel_values_images", "pixel_values")


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Images as square grids, videos as square frames; the CLS rows of frames are always kept.

    Raises:
        IncompatibleError: The CLS row of images is a visual token, or placeholders and tensors do not match.
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


def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
    """Encoder rows: images, then frames, each with its CLS row first."""
    side = patches_per_side(config)
    tile, one = Tile(side, cls_row(config)), cells(side, side, 1, side, side)
    images = sum(len(inputs[name]) for name in _IMAGES if inputs.get(name) is not None) * tile.rows
    tokens = []
    for visual in visuals:
        name, span = visual.source
        start = images if name == "pixel_values_videos" else 0
        tokens.append(film(tile, visual.frames, one, start + span.start * visual.frames * tile.rows))
    videos = inputs.get("pixel_values_videos")
    frames = 0 if videos is None else videos.shape[0] * videos.shape[1]
    return EncoderRows(tuple(tokens), images + frames * tile.rows)


VIDEO_LLAVA = Family(
    name="video_llava",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.image_tower.encoder.layers", "model.video_tower.encoder.layers"),
        rows=rows,
        read_layer=named_layer,
        cls_row=cls_row,
    ),
    placeholders=("image_token_id", "video_token_id"),
    pixels=(*_IMAGES, "pixel_values_videos"),
    video=True,
)
