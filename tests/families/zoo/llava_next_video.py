"""LLaVA-NeXT-Video: LLaVA-NeXT for images; video frames pooled two by two, without newline tokens."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    words = tokenizer("<image>", "<video>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    side = {"height": 28, "width": 28}
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(size={"shortest_edge": 28}, crop_size=side),
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=pinpoints
        ),
        tokenizer=words,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**encoder(28, 7)),
        text_config=LlamaConfig(**decoder(words)),
        image_token_index=identity(words, "<image>"),
        video_token_index=identity(words, "<video>"),
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
    )
    return Parts(LlavaNextVideoForConditionalGeneration(config), processor)


FAMILY = Family("llava_next_video", "llava_next_video", _make, video="<video>")
