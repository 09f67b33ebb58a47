"""Sizes of the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from benchmarks.scenes.words import vocabulary
from tokenprune.tasks.scenes.generator import SIZE

MODELS: Final = Path(__file__).parents[2] / "tokenprune" / "checkpoints"
"""Where the checkpoints ship."""
PATCH: Final = 8
GRID: Final = SIZE // PATCH
PATCHES: Final = GRID * GRID
WIDTH_VISION: Final = 128
WIDTH_LANGUAGE: Final = 192
LAYERS_VISION: Final = 5
READ_LAYER: Final = LAYERS_VISION - 1
"""Layers that run before the features that the projector reads (LLaVA's default, -2)."""


def clip_config() -> CLIPConfig:
    """The vision tower, a small text tower and the space both project into."""
    words = vocabulary()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=128,
        bos_token_id=words["<bos>"],
        eos_token_id=words["<eos>"],
        pad_token_id=words["<pad>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH_VISION,
        intermediate_size=4 * WIDTH_VISION,
        num_hidden_layers=LAYERS_VISION,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)


def llava_config() -> LlavaConfig:
    """The whole model around that vision tower."""
    words = vocabulary()
    language = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH_LANGUAGE,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=words["<bos>"],
        eos_token_id=words["<eos>"],
        pad_token_id=words["<pad>"],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=clip_config().vision_config,
        text_config=language,
        image_token_index=words["<image>"],
        image_token_id=words["<image>"],
        image_seq_length=PATCHES,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        bos_token_id=words["<bos>"],
        eos_token_id=words["<eos>"],
        pad_token_id=words["<pad>"],
        tie_word_embeddings=False,
    )
