"""Ovis 2: a patch is a mixture over a visual vocabulary; the marks between tiles are visual words."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        Ovis2Config,
        Ovis2ForConditionalGeneration,
        Ovis2ImageProcessor,
        Ovis2Processor,
        Ovis2VisionConfig,
        Qwen2Config,
    )

    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    words = tokenizer("<image>", "<IMG_ATOM>", *marks)
    processor = Ovis2Processor(
        Ovis2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4),
        words,
        image_seq_length=16,
    )
    config = Ovis2Config(
        vision_config=Ovis2VisionConfig(
            **encoder(32, 4), hidden_stride=2, vocab_size=48, num_visual_indicator_tokens=len(marks)
        ),
        text_config=Qwen2Config(**decoder(words)),
        image_token_id=identity(words, "<IMG_ATOM>"),
        visual_indicator_token_ids=[identity(words, mark) for mark in marks],
        vocab_size=len(words),
        hidden_size=64,
    )
    return Parts(Ovis2ForConditionalGeneration(config), processor)


FAMILY = Family("ovis2", "ovis2", _make)
