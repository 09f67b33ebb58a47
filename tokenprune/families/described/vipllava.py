"""ViP-LLaVA: LLaVA 1.5 with a projector that reads several encoder layers."""

from __future__ import annotations

from typing import Any

from tokenprune.families.described.llava import patch_size, square
from tokenprune.families.family import Family, VisionTower
from tokenprune.families.reasons import SEVERAL_LAYERS


def read_layer(config: Any) -> int:
    """Last encoder layer (0-based) whose output the projector reads."""
    layers = config.vision_feature_layers
    layers = [layers] if isinstance(layers, int) else list(layers)
    # hidden_states[0] are the embeddings, so hidden_states[i] is the output of layer i - 1
    count = config.vision_config.num_hidden_layers + 1
    return int(max(layer % count for layer in layers)) - 1


VIPLLAVA = Family(
    name="vipllava",
    layout=square,
    vision=VisionTower(
        tower="model.vision_tower",
        layers="encoder.layers",
        projector="model.multi_modal_projector",
        read_layer=read_layer,
        has_cls=lambda _: True,  # the classes drop row 0 of every encoder
        patch_size=patch_size,
        resize={"interpolate_pos_encoding": True},
    ),
    refused={"tower": SEVERAL_LAYERS},
)
