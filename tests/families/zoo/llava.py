"""LLaVA 1.5: CLIP tower, MLP projector, one fixed grid per image."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer("<image>")
    side = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=side),
        words,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**encoder(28, 7)),
        text_config=LlamaConfig(**decoder(words)),
        image_token_id=identity(words, "<image>"),
        vision_feature_layer=-2,
    )
    return Parts(LlavaForConditionalGeneration(config), processor)


FAMILY = Family("llava", "llava", _make)
