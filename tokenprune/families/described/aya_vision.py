"""Aya Vision: square tiles, then the whole image, each after a marker token; every tile is one unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import equal_grids, named_layer, patches_per_side, tile_rows


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile is one grid, with its own row of the pixels.

    Raises:
        IncompatibleError: The placeholders do not fill whole tiles.
    """
    del inputs
    side = patches_per_side(config) // int(config.downsample_factor)
    return equal_grids(runs, side, side)


AYA_VISION = Family(
    name="aya_vision",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.vision_tower.encoder.layers",),
        rows=tile_rows(lambda config: int(config.downsample_factor)),
        read_layer=named_layer,
    ),
)
