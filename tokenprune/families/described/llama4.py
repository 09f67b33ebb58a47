"""Llama 4: square tiles, then the whole image; each is a unit. Separators between them have their own token ids."""

from __future__ import annotations

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
    side = round(patches_per_side(config) * float(config.vision_config.pixel_shuffle_ratio))
    return equal_grids(runs, side, side)


LLAMA4 = Family(
    name="llama4",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("vision_model.model.layers",),
        rows=tile_rows(lambda config: round(1 / float(config.vision_config.pixel_shuffle_ratio)), cls_row=-1),
        read_layer=last_layer,
        cls_row=lambda _: -1,  # the class embedding comes after the patches
        norms=("vision_model.layernorm_post",),
    ),
    base="",  # the model itself receives `input_ids`
    text="language_model.model",
    mlp="feed_forward",
)
