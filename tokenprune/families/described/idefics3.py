"""Idefics3 and SmolVLM: square tiles after marker tokens, then the whole image; frames of videos are images.

Every tile or frame is one unit. All tiles of a prompt share one row of the pixels.
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
    """For each tile, its row of the pixels (rows, tiles, 3, H, W); missing tiles are all zero."""
    real = (pixels != 0).flatten(2).any(dim=2)
    return [int(row) for row in real.nonzero()[:, 0].tolist()]


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile or frame is one grid.

    Raises:
        IncompatibleError: The placeholders do not fill whole tiles, or their number of tiles differs from the pixels'.
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
