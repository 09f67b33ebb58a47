"""The Qwen-VL families: images of any aspect in packed patches, merged two by two; videos in frames.

In Qwen3 every frame of a video has its own run of placeholders, after a text with its time. The frames of a video are
one unit there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.families.encoder_rows import EncoderRows, TokenRows
from tokenprune.families.family import Family, ObservedEncoder, RowsOf, Visual
from tokenprune.families.layouts import Group, in_prompt_order, last_layer
from tokenprune.families.reasons import LINEAR_ATTENTION, everywhere
from tokenprune.families.supported import internal


def packed(inputs: Mapping[str, Any], kind: str, pixels: str, merge: int) -> list[Group]:
    """Images or videos from their grids of patches (frames, rows, columns); one tensor holds all their pixels, packed.

    Args:
        inputs: The processor's tensors.
        kind: `image` or `video`.
        pixels: Name of the tensor with their pixels.
        merge: Patches per token along a side.
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
    """Images and videos from their grids.

    Raises:
        IncompatibleError: Placeholders and grids do not match.
    """
    del runs
    merge = int(config.vision_config.spatial_merge_size)
    return in_prompt_order(
        config,
        inputs,
        packed(inputs, "image", "pixel_values", merge),
        packed(inputs, "video", "pixel_values_videos", merge),
    )


def in_order(config: Any, grids: Tensor) -> Tensor:
    """Position of each token's block of patches, for encoders that keep the blocks in order."""
    merge = int(config.vision_config.spatial_merge_size)
    return torch.arange(int(grids.prod(dim=1).sum()) // merge**2)


def in_windows(config: Any, grids: Tensor) -> Tensor:
    """Position of each token's block of patches, for encoders that sort the blocks by window."""
    vision, window_index = config.vision_config, internal("transformers.vision_utils", "get_vision_window_index")
    order: Tensor
    order, _ = window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)
    return order.argsort()


def packed_rows(block_positions: Callable[[Any, Tensor], Tensor]) -> RowsOf:
    """Encoder rows of patches packed in blocks, one block per token; images run first, then videos.

    Args:
        block_positions: Returns the position of each token's block, from the config and the grids of all images.
    """

    def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
        block = int(config.vision_config.spatial_merge_size) ** 2
        found: dict[str, Tensor] = {}
        total = 0
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            grids = inputs.get(f"{kind}_grid_thw")
            if grids is None:
                continue
            blocks = block_positions(config, grids.cpu())
            found[name] = total + blocks[:, None] * block + torch.arange(block)
            total += len(blocks) * block
        sources = [visual.source for visual in visuals]
        tokens = [found[name][span.start // block : span.stop // block] for name, span in sources]
        return EncoderRows(tuple(TokenRows(index) for index in tokens), total)

    return rows


def last_full_layer(config: Any) -> int:
    """The last encoder layer with attention over the whole image or frame; the last layer if none has."""
    full = [layer for layer in config.vision_config.fullatt_block_indexes if layer <= last_layer(config)]
    return int(max(full, default=last_layer(config)))


_OBSERVED = ObservedEncoder(layers=("model.visual.blocks",), rows=packed_rows(in_order), read_layer=last_layer)
_WINDOWS = ObservedEncoder(
    layers=("model.visual.blocks",),
    rows=packed_rows(in_windows),
    read_layer=last_layer,
    attention_layer=last_full_layer,
)


def _family(
    name: str, observed_encoder: ObservedEncoder | None = _OBSERVED, refused: Mapping[str, str] | None = None
) -> Family:
    return Family(
        name=name,
        layout=layout,
        observed_encoder=observed_encoder,
        placeholders=("image_token_id", "video_token_id"),
        pixels=("pixel_values", "pixel_values_videos"),
        video=True,
        refused=refused or {},
    )


QWEN2_VL = _family("qwen2_vl")
QWEN2_5_VL = _family("qwen2_5_vl", _WINDOWS)
QWEN3_VL = _family("qwen3_vl")
QWEN3_VL_MOE = _family("qwen3_vl_moe")
QWEN3_5 = _family("qwen3_5", refused=everywhere(LINEAR_ATTENTION))
