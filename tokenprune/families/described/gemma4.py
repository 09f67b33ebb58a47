"""Gemma 4: images of any aspect, pooled three by three; every frame of a video has its own run of placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import IncompatibleError
from tokenprune.families.encoder_rows import EncoderRows, TokenRows
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import HINT, Group, in_prompt_order, last_layer, tensor


def grids(coordinates: Tensor, pool: int) -> list[tuple[int, int]]:
    """Rows and columns of pooled tokens, from patch coordinates (x, y), (images, patches, 2), -1 for padding."""
    return [((high + 1) // pool, (wide + 1) // pool) for wide, high in coordinates.amax(dim=1).tolist()]


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Images and videos from the coordinates of their patches.

    Raises:
        IncompatibleError: Frames of one video have different grids, or placeholders and tensors do not match.
    """
    del runs
    pool = int(config.vision_config.pooling_kernel_size)
    images: list[Group] = []
    if inputs.get("image_position_ids") is not None:
        images = [
            (Visual(rows * columns, (rows, columns), pixels=("pixel_values", row, row + 1)),)
            for row, (rows, columns) in enumerate(grids(inputs["image_position_ids"], pool))
        ]
    videos: list[Group] = []
    if inputs.get("video_position_ids") is not None:
        frames = grids(inputs["video_position_ids"], pool)
        counts = tensor(inputs, "num_frames_per_video").tolist()
        starts = [sum(counts[:index]) for index in range(len(counts) + 1)]
        videos = [(_video(frames, start, stop),) for start, stop in pairwise(starts)]
    return in_prompt_order(config, inputs, images, videos)


def _video(grids: list[tuple[int, int]], start: int, stop: int) -> Visual:
    own = set(grids[start:stop])
    if len(own) != 1:
        raise IncompatibleError(
            f"the frames of a video have the grids {sorted(own)}",
            hint="make the inputs with the checkpoint's own processor",
        )
    ((rows, columns),) = own
    return Visual(
        (stop - start) * rows * columns, (rows, columns), stop - start, pixels=("pixel_values_videos", start, stop)
    )


def pooled(coordinates: Tensor, pool: int) -> Tensor:
    """Rows (N, pool * pool) of each token of one image, from the coordinates of its patches (patches, 2).

    Raises:
        IncompatibleError: The patches do not fill whole tokens.
    """
    real = (coordinates >= 0).all(dim=1).nonzero()[:, 0]
    across, down = (coordinates[real] // pool).unbind(dim=1)
    columns = (int(coordinates[:, 0].max()) + 1) // pool
    order = (across + columns * down).argsort(stable=True)
    if len(order) % (pool * pool):
        raise IncompatibleError(f"{len(order)} patches cannot be pooled {pool} by {pool}", hint=HINT)
    return real[order].view(-1, pool * pool)


def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
    """Encoder rows from the coordinates of patches; images and frames are padded to two different lengths."""
    pool = int(config.vision_config.pooling_kernel_size)
    starts: dict[str, list[Tensor]] = {}
    total = 0
    for name, coordinates in (
        ("pixel_values", inputs.get("image_position_ids")),
        ("pixel_values_videos", inputs.get("video_position_ids")),
    ):
        if coordinates is None:
            continue
        flat = coordinates.flatten(0, -3).cpu()
        starts[name] = [pooled(one, pool) + total + number * len(one) for number, one in enumerate(flat)]
        total += flat.shape[0] * flat.shape[1]
    found = [starts[name][span] for name, span in (visual.source for visual in visuals)]
    return EncoderRows(tuple(TokenRows(torch.cat(frames)) for frames in found), total)


GEMMA4 = Family(
    name="gemma4",
    layout=layout,
    observed_encoder=ObservedEncoder(layers=("model.vision_tower.encoder.layers",), rows=rows, read_layer=last_layer),
    placeholders=("image_token_id", "video_token_id"),
    pixels=("pixel_values", "pixel_values_videos"),
    video=True,
)
