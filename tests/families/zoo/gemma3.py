"""Gemma 3: a fixed number of pooled tokens per image, seen both ways; sliding and full layers with two ropes."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    words = tokenizer(
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    )
    processor = Gemma3Processor(Gemma3ImageProcessor(size={"height": 32, "width": 32}), words, image_seq_length=16)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**encoder(32, 4), vision_use_head=False),
        text_config=Gemma3TextConfig(
            **decoder(words, head_dim=16, query_pre_attn_scalar=16, sliding_window=24),
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        mm_tokens_per_image=16,
        tie_word_embeddings=False,  # tied, a random model says the last word again and again
        boi_token_index=identity(words, "<start_of_image>"),
        eoi_token_index=identity(words, "<end_of_image>"),
        image_token_index=identity(words, "<image_soft_token>"),
    )
    return Parts(Gemma3ForConditionalGeneration(config), processor)


FAMILY = Family("gemma3", "gemma3", _make, image="<start_of_image>", nested=True)
