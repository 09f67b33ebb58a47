"""Ovis2: the whole image, then square tiles with marker tokens between them; every tile is one unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import equal_grids, last_layer, patches_per_side, tile_rows


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile is one grid, with its own row of the pixels.

    Raises:
        IncompatibleError: The placeholders do not fill whole tiles.
    """
    del inputs
    side = math.ceil(patches_per_side(config) / int(config.vision_config.hidden_stride))  # the model pads a remainder
    return equal_grids(runs, side, side)


OVIS2 = Family(
    name="ovis2",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.vision_tower.transformer.encoder.layers",),
        rows=tile_rows(lambda config: int(config.vision_config.hidden_stride)),
        read_layer=last_layer,
        norms=("model.vision_tower.transformer.rms_norm",),
    ),
)
