"""Mistral Small 3: patches of any image size merged two by two, a break token after every row."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 4, "width": 4}),
        words,
        patch_size=4,
        spatial_merge_size=2,
    )
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**encoder(64, 4, head_dim=8)),
        text_config=MistralConfig(**decoder(words, head_dim=16), sliding_window=None),
        image_token_index=identity(words, "[IMG]"),
        spatial_merge_size=2,
    )
    return Parts(Mistral3ForConditionalGeneration(config), processor)


FAMILY = Family("mistral3", "mistral3", _make, image="[IMG]")
