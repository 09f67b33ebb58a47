"""Perception LM: tiles with a thumbnail in front, an encoder of timm with a CLS row, two by two pooling."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, identity, tokenizer


def _make() -> Parts:
    from transformers import (
        LlamaConfig,
        PerceptionLMConfig,
        PerceptionLMForConditionalGeneration,
        PerceptionLMImageProcessor,
        PerceptionLMProcessor,
        PerceptionLMVideoProcessor,
        TimmWrapperConfig,
    )

    words = tokenizer(named={"image_token": "<|image|>", "video_token": "<|video|>"})
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size={"height": 32, "width": 32}),
        PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4, size={"height": 32, "width": 32}),
        words,
        patch_size=4,
        pooling_ratio=2,
    )
    config = PerceptionLMConfig(
        vision_config=TimmWrapperConfig(
            architecture="vit_pe_core_large_patch14_336",
            model_args={
                "embed_dim": 32,
                "img_size": [32, 32],
                "patch_size": 4,
                "depth": 3,
                "num_heads": 4,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [8, 8],
            },
        ),
        text_config=LlamaConfig(**decoder(words)),
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        image_token_id=identity(words, "<|image|>"),
        video_token_id=identity(words, "<|video|>"),
    )
    return Parts(PerceptionLMForConditionalGeneration(config), processor)


FAMILY = Family(
    "perception_lm",
    "perception_lm",
    _make,
    image="<|image|>",
    video="<|video|>",
    sizes=((64, 64), (56, 60), (48, 64)),  # its processor stacks images, so all must make the same number of tiles
)
