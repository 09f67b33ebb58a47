"""FastVLM: a convolutional tower of timm, one grid per image."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        CLIPImageProcessor,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
        TimmWrapperConfig,
    )

    words = tokenizer("<image>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 256, "width": 256}),
        words,
        patch_size=64,
        vision_feature_select_strategy="full",
    )
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture="fastvit_mci3",
            do_pooling=True,
            global_pool="avg",
            hidden_size=128,
            model_args={
                "layers": [1, 1, 1, 1, 1],
                "embed_dims": [8, 8, 16, 32, 64],
                "mlp_ratios": [2, 2, 2, 2, 2],
                "inference_mode": True,
            },
        ),
        text_config=Qwen2Config(**decoder(words)),
        image_token_index=identity(words, "<image>"),
        image_seq_length=16,
    )
    return Parts(FastVlmForConditionalGeneration(config), processor)


FAMILY = Family("fast_vlm", "fast_vlm", _make)
