"""Qwen3-VL: interleaved M-RoPE, timestamps between frames, and features of deeper encoder layers (DeepStack)."""

from __future__ import annotations

from typing import Any

from tests.families.zoo.base import HEAD_DIM, Family, Parts, decoder
from tests.families.zoo.qwen2_vl import IMAGE, M_ROPE, PATCH, sizes, token_ids, words

VIDEO = "<|video_pad|>"
"""The processor itself puts start and end around every frame."""
INTERLEAVED = {**M_ROPE, "mrope_interleaved": True}


def tower(**changes: Any) -> dict[str, Any]:
    """Options of a small vision config of this and the following families."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "num_heads": 4,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 64,
        **changes,
    }


def qwen3_processor(known: Any) -> Any:
    """The processor of this and the following families."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**sizes()),
        known,
        Qwen3VLVideoProcessor(**sizes(size={"shortest_edge": 16 * 16, "longest_edge": 4 * 64 * 64})),
    )


def _make() -> Parts:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    known = words()
    config = Qwen3VLConfig(
        vision_config=tower(deepstack_visual_indexes=[0, 1]),
        text_config=decoder(known, head_dim=HEAD_DIM, rope_parameters=INTERLEAVED),
        **token_ids(known),
    )
    return Parts(Qwen3VLForConditionalGeneration(config), qwen3_processor(known))


FAMILY = Family("qwen3_vl", "qwen3_vl", _make, image=IMAGE, video=VIDEO)
