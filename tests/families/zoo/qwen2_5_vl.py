"""Qwen2.5-VL: as Qwen2-VL, with windowed attention in most layers of the tower."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder
from tests.families.zoo.qwen2_vl import IMAGE, M_ROPE, PATCH, VIDEO, sizes, token_ids, words


def _make() -> Parts:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    known = words()
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes()),
        known,
        Qwen2VLVideoProcessor(**sizes(size={"shortest_edge": 16 * 16, "longest_edge": 2 * 64 * 64})),
    )
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 4,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=decoder(known, rope_parameters=M_ROPE),
        **token_ids(known),
    )
    return Parts(Qwen2_5_VLForConditionalGeneration(config), processor)


FAMILY = Family("qwen2_5_vl", "qwen2_5_vl", _make, image=IMAGE, video=VIDEO)
