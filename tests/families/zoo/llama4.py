"""Llama 4: tiles with separators and a global view, pixel shuffle; chunked layers with rope, full ones without."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        Llama4Config,
        Llama4ForConditionalGeneration,
        Llama4ImageProcessor,
        Llama4Processor,
        Llama4TextConfig,
        Llama4VisionConfig,
    )

    words = tokenizer(
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    )
    processor = Llama4Processor(
        Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=4), words, patch_size=4
    )
    config = Llama4Config(
        vision_config=Llama4VisionConfig(
            **encoder(32, 4, intermediate_size=128),
            vision_output_dim=64,
            projector_input_dim=64,
            projector_output_dim=64,
            pixel_shuffle_ratio=0.5,
        ),
        text_config=Llama4TextConfig(
            **decoder(words, head_dim=16, intermediate_size=64),
            intermediate_size_mlp=64,
            num_local_experts=2,
            attention_chunk_size=48,
        ),
        boi_token_index=identity(words, "<|image_start|>"),
        eoi_token_index=identity(words, "<|image_end|>"),
        image_token_index=identity(words, "<|patch|>"),
    )
    return Parts(Llama4ForConditionalGeneration(config), processor)


FAMILY = Family(
    "llama4",
    "llama4",
    _make,
    image="<|image|>",
    stock_fails={"5.24.0": "`MoeCausalLMOutputWithPast` has no `image_outputs`"},
)
