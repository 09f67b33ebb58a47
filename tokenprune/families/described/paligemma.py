"""PaliGemma: SigLIP tower, one linear projection, one fixed grid per image at the front of the prompt."""

from __future__ import annotations

from tokenprune.families.described.llava import patch_size, square
from tokenprune.families.family import Family, VisionTower
from tokenprune.families.layouts import last_layer

PALIGEMMA = Family(
    name="paligemma",
    layout=square,
    vision=VisionTower(
        tower="model.vision_tower",
        layers="encoder.layers",
        projector="model.multi_modal_projector",
        read_layer=last_layer,  # after the final norm
        has_cls=lambda _: False,
        patch_size=patch_size,
        resize={"interpolate_pos_encoding": True},
    ),
    plain_prompts=True,
)
