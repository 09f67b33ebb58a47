"""GLM-4.1V: patches of any image size merged two by two, M-RoPE, post-attention norms; frames with timestamps."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, identity, tokenizer
from tests.families.zoo.qwen2_vl import PATCH, sizes


def _make() -> Parts:
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    names = {
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
    }
    known = tokenizer(*names.values())
    processor = Glm4vProcessor(
        Glm4vImageProcessor(**sizes()),
        known,
        Glm4vVideoProcessor(**sizes(size={"shortest_edge": 16 * 16, "longest_edge": 4 * 64 * 64})),
    )
    config = Glm4vConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 4,
            "image_size": 32,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
        text_config=decoder(
            known,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "partial_rotary_factor": 0.5,
            },
        ),
        **{name: identity(known, token) for name, token in names.items()},
    )
    return Parts(Glm4vForConditionalGeneration(config), processor)


FAMILY = Family(
    "glm4v",
    "glm4v",
    _make,
    image="<|begin_of_image|><|image|><|end_of_image|>",
    video="<|begin_of_video|><|video|><|end_of_video|>",
    mixes=False,  # frames carry the id of images, so the model refuses a batch with both
)
