"""Idefics3 and SmolVLM: square tiles with marks before them, the whole picture last; frames of videos are pictures.

Every tile or frame is one unit. Its pixels are named by row of the batch only, which a prompt's tiles share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import HINT, equal_grids, last_layer, patches_per_side, tile_rows


def rows_of_tiles(pixels: Tensor) -> list[int]:
    """The row of the batch that each tile lies in, from pixels (rows, tiles, 3, H, W); missing tiles are all zero."""
    real = (pixels != 0).flatten(2).any(dim=2)
    return [int(row) for row in real.nonzero()[:, 0].tolist()]


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile or frame is one grid.

    Raises:
        IncompatibleError: The placeholders are no whole number of tiles, or not as many as there are tiles.
    """
    side = patches_per_side(config) // int(config.scale_factor)
    tiles = equal_grids(runs, side, side)
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return tiles
    rows = rows_of_tiles(pixels)
    if len(rows) != len(tiles):
        raise IncompatibleError(
            f"the placeholders are those of {len(tiles)} tiles, but there are {len(rows)}", hint=HINT
        )
    return [replace(tile, pixels=("pixel_values", row, row + 1)) for tile, row in zip(tiles, rows, strict=True)]


_OBSERVED = ObservedEncoder(
    layers=("model.vision_model.encoder.layers",),
    rows=tile_rows(lambda config: int(config.scale_factor)),
    read_layer=last_layer,
    norms=("model.vision_model.post_layernorm",),
)

IDEFICS3 = Family(name="idefics3", layout=layout, observed_encoder=_OBSERVED, text="model.text_model")
SMOLVLM = Family(name="smolvlm", layout=layout, observed_encoder=_OBSERVED, text="model.text_model", video=True)
