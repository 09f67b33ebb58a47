"""Aya Vision: tiles, each with a mark in front, pixel shuffle two by two; parallel blocks with sliding layers."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        AyaVisionProcessor,
        Cohere2Config,
        GotOcr2ImageProcessor,
        SiglipVisionConfig,
    )

    words = tokenizer(
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        *(f"TILE_{tile}" for tile in range(1, 13)),
        "TILE",
    )
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessor(size={"height": 32, "width": 32}, min_patches=1, max_patches=4),
        words,
        patch_size=4,
        img_size=32,
        downsample_factor=2,
    )
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**encoder(32, 4), vision_use_head=False),
        text_config=Cohere2Config(
            **decoder(words, sliding_window=24), layer_types=["sliding_attention"] * 3 + ["full_attention"]
        ),
        image_token_index=identity(words, "<|IMG_PATCH|>"),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        tie_word_embeddings=False,  # tied, a random model says the last word again and again
    )
    return Parts(AyaVisionForConditionalGeneration(config), processor)


FAMILY = Family("aya_vision", "aya_vision", _make)
