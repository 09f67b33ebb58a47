"""Idefics 3: tiles with row and column marks and one global view, pixel shuffle two by two."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer

MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))


def _make() -> Parts:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    words = tokenizer(*MARKS, *TILES)
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        words,
        image_seq_len=16,
    )
    config = Idefics3Config(
        vision_config=encoder(32, 4),
        text_config=LlamaConfig(**decoder(words)),
        image_token_id=identity(words, "<image>"),
        scale_factor=2,
    )
    return Parts(Idefics3ForConditionalGeneration(config), processor)


FAMILY = Family("idefics3", "idefics3", _make)
