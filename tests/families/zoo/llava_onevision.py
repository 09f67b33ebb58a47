"""LLaVA-OneVision: tiles with newline tokens for one image, one base grid for several, pooled frames for videos."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    words = tokenizer("<image>", "<video>")
    pinpoints = [[height, width] for height in (28, 56, 84) for width in (28, 56, 84)]
    side = {"height": 28, "width": 28}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=pinpoints),
        words,
        LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**encoder(28, 7), vision_use_head=False),
        text_config=Qwen2Config(**decoder(words)),
        image_token_index=identity(words, "<image>"),
        video_token_index=identity(words, "<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",
    )
    return Parts(LlavaOnevisionForConditionalGeneration(config), processor)


FAMILY = Family("llava_onevision", "llava_onevision", _make, video="<video>", nested=True)
