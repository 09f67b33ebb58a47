"""Qwen3-VL MoE: Qwen3-VL with experts in the decoder."""

from __future__ import annotations

from tests.families.zoo.base import HEAD_DIM, Family, Parts, decoder
from tests.families.zoo.qwen2_vl import IMAGE, token_ids, words
from tests.families.zoo.qwen3_vl import INTERLEAVED, VIDEO, qwen3_processor, tower


def _make() -> Parts:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    known = words()
    config = Qwen3VLMoeConfig(
        vision_config=tower(deepstack_visual_indexes=[0, 1]),
        text_config=decoder(
            known,
            head_dim=HEAD_DIM,
            rope_parameters=INTERLEAVED,
            moe_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        **token_ids(known),
    )
    return Parts(Qwen3VLMoeForConditionalGeneration(config), qwen3_processor(known))


FAMILY = Family("qwen3_vl_moe", "qwen3_vl_moe", _make, image=IMAGE, video=VIDEO)
