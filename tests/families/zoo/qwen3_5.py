"""Qwen3.5: three layers of linear attention for one of full attention, gated; M-RoPE on a part of each head."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder
from tests.families.zoo.qwen2_vl import IMAGE, token_ids, words
from tests.families.zoo.qwen3_vl import VIDEO, qwen3_processor, tower


def _make() -> Parts:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    known = words()
    config = Qwen3_5Config(
        vision_config=tower(),
        text_config=decoder(
            known,
            head_dim=32,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        ),
        **token_ids(known),
    )
    return Parts(Qwen3_5ForConditionalGeneration(config), qwen3_processor(known))


FAMILY = Family("qwen3_5", "qwen3_5", _make, image=IMAGE, video=VIDEO)
