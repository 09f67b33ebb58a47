"""InternVL: square tiles, then the whole image; frames of videos look like images of one tile.

Every tile is one unit. The processor's tensors do not say how tiles are arranged, nor which of them are the frames of
one video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import equal_grids, named_layer, patches_per_side, tile_rows


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile or frame is one grid, with its own row of the pixels.

    Raises:
        IncompatibleError: The placeholders do not fill whole tiles.
    """
    del inputs
    side = round(patches_per_side(config) * float(config.downsample_ratio))
    return equal_grids(runs, side, side)


INTERNVL = Family(
    name="internvl",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.vision_tower.encoder.layer",),
        rows=tile_rows(lambda config: round(1 / float(config.downsample_ratio)), cls_row=0),
        read_layer=named_layer,
        cls_row=lambda _: 0,
        norms=("model.vision_tower.layernorm",),
    ),
    video=True,
)
