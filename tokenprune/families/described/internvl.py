"""InternVL: square tiles, the whole picture last; frames of videos look like pictures of one tile.

Every tile is one unit. The processor's tensors do not tell how tiles lie beside each other, nor which of them are
frames of one video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import equal_grids, named_layer, patches_per_side, tile_rows


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile or frame is one grid; its pixels are the row of its own number.

    Raises:
        IncompatibleError: The placeholders are no whole number of tiles.
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
