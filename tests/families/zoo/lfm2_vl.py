"""LFM2-VL: tiles or one image of any size, pixel unshuffle two by two; short convolutions among attention layers."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        Lfm2Config,
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
        Siglip2VisionConfig,
    )

    words = tokenizer(
        *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
        named={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
    )
    processor = Lfm2VlProcessor(
        Lfm2VlImageProcessor(
            encoder_patch_size=4,
            tile_size=32,
            size={"height": 32, "width": 32},
            min_tiles=2,
            max_tiles=4,
            min_image_tokens=4,
            max_image_tokens=16,
        ),
        words,
    )
    vision = encoder(32, 4)
    del vision["image_size"]
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(**vision, num_patches=64, vision_use_head=False),
        text_config=Lfm2Config(
            **decoder(words), layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False
        ),
        image_token_id=identity(words, "<image>"),
        projector_hidden_size=64,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    return Parts(Lfm2VlForConditionalGeneration(config), processor)


FAMILY = Family("lfm2_vl", "lfm2_vl", _make, nested=True)
