"""LLaVA-NeXT: a base grid and an unpadded grid of tiles, whose rows end in a newline token."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    words = tokenizer("<image>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
        ),
        words,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**encoder(28, 7)),
        text_config=LlamaConfig(**decoder(words)),
        image_token_index=identity(words, "<image>"),
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
    )
    return Parts(LlavaNextForConditionalGeneration(config), processor)


FAMILY = Family("llava_next", "llava_next", _make)
