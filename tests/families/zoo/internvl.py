"""InternVL 3: tiles without row marks, a tower with a CLS row, pixel shuffle two by two; videos enter as images."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    words = tokenizer(
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    side = {"height": 32, "width": 32}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=1, max_patches=4),
        words,
        InternVLVideoProcessor(size=side),
        image_seq_length=16,
    )
    config = InternVLConfig(
        vision_config=encoder(32, 4),
        text_config=Qwen2Config(**decoder(words)),
        image_token_id=identity(words, "<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    return Parts(InternVLForConditionalGeneration(config), processor)


FAMILY = Family("internvl", "internvl", _make, image="<IMG_CONTEXT>", video="<video>")
