"""SmolVLM: as Idefics 3; a video is a row of images with timestamps between them."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer
from tests.families.zoo.idefics3 import MARKS, TILES


def _make() -> Parts:
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = tokenizer(*MARKS, *TILES, "<video>")
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        words,
        SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        image_seq_len=16,
    )
    config = SmolVLMConfig(
        vision_config=encoder(32, 4),
        text_config=LlamaConfig(**decoder(words)),
        image_token_id=identity(words, "<image>"),
        scale_factor=2,
    )
    return Parts(SmolVLMForConditionalGeneration(config), processor)


FAMILY = Family(
    "smolvlm",
    "smolvlm",
    _make,
    video="<video>",
    nested=True,
    mixes=False,  # pictures and frames share one input
)
