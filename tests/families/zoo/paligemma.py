"""PaliGemma: one grid per image in front; image and prompt see each other both ways."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    words = tokenizer(named={"image_token": "<image>"})
    pictures = SiglipImageProcessor(size={"height": 28, "width": 28})
    pictures.image_seq_length = 16
    processor = PaliGemmaProcessor(pictures, words)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**encoder(28, 7), vision_use_head=False),
        text_config=GemmaConfig(**decoder(words, head_dim=16)),
        image_token_index=identity(words, "<image>"),
        vocab_size=len(words),
        hidden_size=64,
        projection_dim=64,
        tie_word_embeddings=False,  # tied, a random model says the last word again and again
    )
    return Parts(PaliGemmaForConditionalGeneration(config), processor)


FAMILY = Family("paligemma", "paligemma", _make, text_only=False)
