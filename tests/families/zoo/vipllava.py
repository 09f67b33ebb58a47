"""ViP-LLaVA: the projector reads several encoder layers side by side, CLS row left out."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaProcessor,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    words = tokenizer("<image>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        words,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**encoder(28, 7)),
        text_config=LlamaConfig(**decoder(words)),
        image_token_index=identity(words, "<image>"),
        vision_feature_layers=[-2, -3, 1],
    )
    return Parts(VipLlavaForConditionalGeneration(config), processor)


FAMILY = Family("vipllava", "vipllava", _make)
