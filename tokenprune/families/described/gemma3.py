"""Gemma 3: one pooled square grid per image; the crops of pan-and-scan are separate images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import equal_grids, last_layer, patches_per_side, tile_rows


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every image or crop is one grid, with its own row of the pixels.

    Raises:
        IncompatibleError: The placeholders do not fill whole grids.
    """
    del inputs
    side = math.isqrt(int(config.mm_tokens_per_image))
    return equal_grids(runs, side, side)


GEMMA3 = Family(
    name="gemma3",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.vision_tower.encoder.layers",),
        rows=tile_rows(lambda config: patches_per_side(config) // math.isqrt(int(config.mm_tokens_per_image))),
        read_layer=last_layer,
        norms=("model.vision_tower.post_layernorm",),
    ),
)
