"""Small random LLaVA models and inputs, built in memory from the real config classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE = 63
PAD = 0
GRID = 4
TOKENS = GRID * GRID


def random_llava(attention: str = "sdpa", *, seed: int = 0, layers: int = 4) -> Any:
    """A random model whose weights are large enough that every token matters."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=8 * GRID,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=None,
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.25)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [IMAGE]  # a random model would also say the placeholder
    return model


def prompt(seed: int, *, images: int = 1, text: int = 6) -> tuple[list[int], torch.Tensor]:
    """Token ids and pixel values of one sample: text, image(s) with text between, text."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(3, 62, (count,), generator=generator).tolist()

    ids = [1, *words(2)]
    for _ in range(images):
        ids += [IMAGE] * TOKENS + words(3)
    ids += words(text)
    return ids, torch.rand(images, 3, 8 * GRID, 8 * GRID, generator=generator) * 2 - 1


def batch(samples: Sequence[tuple[list[int], torch.Tensor]], side: str = "left") -> dict[str, torch.Tensor]:
    """Pad samples into a batch."""
    width = max(len(ids) for ids, _ in samples)
    rows, masks = [], []
    for ids, _ in samples:
        pad = [PAD] * (width - len(ids))
        rows.append(pad + ids if side == "left" else ids + pad)
        masks.append([0] * len(pad) + [1] * len(ids) if side == "left" else [1] * len(ids) + [0] * len(pad))
    pixels = [pixels for _, pixels in samples if len(pixels)]
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    if pixels:
        inputs["pixel_values"] = torch.cat(pixels)
    return inputs
