"""Video-LLaVA: a tower for images and one for videos; every frame keeps its CLS row."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    words = tokenizer("<image>", "<video>")
    side = {"height": 28, "width": 28}
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(size={"shortest_edge": 28}, crop_size=side),
        VideoLlavaVideoProcessor(size={"shortest_edge": 28}, crop_size=side),
        words,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**encoder(28, 7)),
        text_config=LlamaConfig(**decoder(words)),
        image_token_index=identity(words, "<image>"),
        video_token_index=identity(words, "<video>"),
        vision_feature_layer=-2,
    )
    return Parts(VideoLlavaForConditionalGeneration(config), processor)


FAMILY = Family("video_llava", "video_llava", _make, video="<video>")
