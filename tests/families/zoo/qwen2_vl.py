"""Qwen2-VL: patches of any image size, merged two by two; M-RoPE with rows for time, height and width."""

from __future__ import annotations

from typing import Any

from tests.families.zoo.base import Family, Parts, decoder, identity, tokenizer

PATCH = 4
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}


def words() -> Any:
    """Tokenizer with the tokens that all Qwen vision-language models share."""
    return tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def sizes(**changes: Any) -> dict[str, Any]:
    """Options of image and video processors for small patches."""
    return {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        **changes,
    }


def token_ids(known: Any) -> dict[str, int]:
    """Ids that the configs of all Qwen vision-language models name alike."""
    return {
        "image_token_id": identity(known, "<|image_pad|>"),
        "video_token_id": identity(known, "<|video_pad|>"),
        "vision_start_token_id": identity(known, "<|vision_start|>"),
        "vision_end_token_id": identity(known, "<|vision_end|>"),
    }


def _make() -> Parts:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    known = words()
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes()),
        known,
        Qwen2VLVideoProcessor(**sizes(size={"shortest_edge": 16 * 16, "longest_edge": 2 * 64 * 64})),
    )
    config = Qwen2VLConfig(
        vision_config={
            "depth": 3,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
        text_config=decoder(known, rope_parameters=M_ROPE),
        **token_ids(known),
    )
    return Parts(Qwen2VLForConditionalGeneration(config), processor)


FAMILY = Family("qwen2_vl", "qwen2_vl", _make, image=IMAGE, video=VIDEO)
