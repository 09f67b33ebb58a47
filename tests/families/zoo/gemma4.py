"""Gemma 4: images of any aspect pooled three by three, inputs of their own for every layer, layers that share keys."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4TextConfig,
        Gemma4VideoProcessor,
        Gemma4VisionConfig,
    )

    words = tokenizer(
        "<|video|>",
        named={
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "image_token": "<|image|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "audio_token": "<|audio|>",
        },
    )
    pooled = {"patch_size": 4, "pooling_kernel_size": 3}
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(**pooled, max_soft_tokens=70),
        words,
        Gemma4VideoProcessor(**pooled, max_soft_tokens=70),
    )
    config = Gemma4Config(
        vision_config=Gemma4VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            position_embedding_size=128,
            **pooled,
        ),
        text_config=Gemma4TextConfig(
            **decoder(words, head_dim=16, sliding_window=24, num_hidden_layers=6),
            global_head_dim=32,
            layer_types=["sliding_attention", "full_attention"] * 3,
            vocab_size_per_layer_input=len(words),
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            use_bidirectional_attention="vision",
        ),
        audio_config=None,
        tie_word_embeddings=False,  # tied, a random model says the last word again and again
        boi_token_id=identity(words, "<|image>"),
        eoi_token_id=identity(words, "<image|>"),
        image_token_id=identity(words, "<|image|>"),
        video_token_id=identity(words, "<|video|>"),
        audio_token_id=identity(words, "<|audio|>"),
        boa_token_id=identity(words, "<|audio>"),
        eoa_token_index=identity(words, "<audio|>"),
    )
    return Parts(Gemma4ForConditionalGeneration(config), processor)


FAMILY = Family("gemma4", "gemma4", _make, image="<|image|>", video="<|video|>", nested=True)
