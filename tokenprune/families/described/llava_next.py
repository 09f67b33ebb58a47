"""LLaVA-NeXT and LLaVA-NeXT-Video: the whole image as one grid, then its tiles as one grid with newline tokens.

An image is two units: the coarse grid, and the fine grid that the model stitches from the tiles and crops to the
image's aspect. A budget counts for each of them. The pooled frames of a video are one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.families.described.llava import cls_row, refuse_cls_tokens
from tokenprune.families.encoder_rows import EncoderRows, Tile, TokenRows, cells, film, resized, starts_of
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import Group, in_prompt_order, named_layer, patches_per_side, tensor
from tokenprune.families.supported import internal

_MODEL = "transformers.models.llava_next.modeling_llava_next"


def fine_grid(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the stitched tiles of an image of a size (height, width), computed as the model does."""
    side, tiles = patches_per_side(config), tiles_of(config, size)
    _, rows, columns = _unpadded(torch.empty(0, tiles[0] * side, tiles[1] * side), size).shape
    return int(rows), int(columns)


def coarse_and_fine(side: int, fine: tuple[int, int], row: int) -> Group:
    """An image as two grids; every row of the fine grid ends in a newline token."""
    rows, columns = fine
    ends = tuple(range(columns, rows * (columns + 1), columns + 1))
    image_pixels = ("pixel_values", row, row + 1)
    return (
        Visual(side * side, (side, side), pixels=image_pixels),
        Visual(rows * (columns + 1), fine, separators=ends, pixels=image_pixels),
    )


def tiled(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every image as a coarse and a fine grid, every video as its pooled frames.

    Raises:
        IncompatibleError: The CLS row is a visual token, or placeholders and tensors do not match.
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


def tiles_of(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of tiles into which the model cuts an image of a size (height, width)."""
    grid_shape = internal(_MODEL, "get_anyres_image_grid_shape")
    high, wide = grid_shape(tuple(size), config.image_grid_pinpoints, config.vision_config.image_size)
    return int(high), int(wide)


def stitched(tile: Tile, tiles: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Encoder rows (height, width) of an image's stitched and cropped tiles, 0 is the first tile's first row."""
    high, wide = tiles
    numbers = torch.arange(high * wide)[:, None] * tile.rows + tile.first + torch.arange(tile.side**2)
    whole = numbers.view(high, wide, tile.side, tile.side).transpose(1, 2).reshape(high * tile.side, wide * tile.side)
    return _unpadded(whole[None], size)[0]


def _unpadded(tiles: Tensor, size: Sequence[int]) -> Tensor:
    """Stitched tiles (C, rows, columns), cropped to the aspect of an image of a size (height, width)."""
    cropped: Tensor = internal(_MODEL, "unpad_image")(tiles, tuple(size))
    return cropped


def picture_rows(
    config: Any, sizes: Sequence[Sequence[int]], alone: Sequence[bool], visuals: Sequence[Visual]
) -> tuple[list[TokenRows], int]:
    """Encoder rows of the tokens of each image, and the number of rows of all images.

    The encoder runs the whole image, and then its tiles if the image is `alone` in its prompt.
    """
    tile = Tile(patches_per_side(config), cls_row(config))
    tiles = [tiles_of(config, size) if one else (0, 0) for size, one in zip(sizes, alone, strict=True)]
    starts = starts_of([(1 + high * wide) * tile.rows for high, wide in tiles])
    coarse = cells(tile.side, tile.side, 1, tile.side, tile.side)
    found: list[TokenRows] = []
    seen: set[int] = set()
    for visual in visuals:
        name, span = visual.source
        if name != "pixel_values":
            continue
        number = span.start
        if number not in seen:
            seen.add(number)
            found.append(coarse.shifted(starts[number] + tile.first))
        elif visual.grid is not None:
            patches = stitched(tile, tiles[number], sizes[number])
            found.append(resized(patches, *visual.grid).shifted(starts[number] + tile.rows))
    return found, starts[-1]


def with_videos(
    config: Any,
    inputs: Mapping[str, Any],
    visuals: Sequence[Visual],
    pictures: tuple[list[TokenRows], int],
    frame: TokenRows,
) -> EncoderRows:
    """Encoder rows of images and videos in prompt order; `frame` holds the rows of one frame's tokens."""
    tile = Tile(patches_per_side(config), cls_row(config))
    images, total = iter(pictures[0]), pictures[1]
    tokens = []
    for visual in visuals:
        name, span = visual.source
        if name == "pixel_values":
            tokens.append(next(images))
        else:
            tokens.append(film(tile, visual.frames, frame, total + span.start * visual.frames * tile.rows))
    videos = inputs.get("pixel_values_videos")
    frames = 0 if videos is None else videos.shape[0] * videos.shape[1]
    return EncoderRows(tuple(tokens), total + frames * tile.rows)


def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
    """Encoder rows: images and their tiles, then pooled frames."""
    given = inputs.get("image_sizes")
    sizes = [] if given is None else given.tolist()
    pictures = picture_rows(config, sizes, [True] * len(sizes), visuals)
    side, pool = patches_per_side(config), int(getattr(config, "spatial_pool_stride", 1))
    return with_videos(config, inputs, visuals, pictures, cells(side, side, pool, side // pool, side // pool))


_OBSERVED = ObservedEncoder(
    layers=("model.vision_tower.encoder.layers",), rows=rows, read_layer=named_layer, cls_row=cls_row
)

LLAVA_NEXT = Family(name="llava_next", layout=tiled, observed_encoder=_OBSERVED)

LLAVA_NEXT_VIDEO = Family(
    name="llava_next_video",
    layout=tiled,
    observed_encoder=_OBSERVED,
    placeholders=("image_token_id", "video_token_id"),
    pixels=("pixel_values", "pixel_values_videos"),
    video=True,
)
