"""LFM2-VL: tiles of any aspect, then the whole image; its decoder has convolutions, so it cannot be pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.families.family import Family, Visual
from tokenprune.families.layouts import in_prompt_order
from tokenprune.families.reasons import CONVOLUTION, everywhere


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile is one grid.

    Raises:
        IncompatibleError: Placeholders and shapes do not match.
    """
    del runs
    factor = int(config.downsample_factor)
    shapes = inputs.get("spatial_shapes")
    patches = [] if shapes is None else shapes.tolist()
    grids = [(math.ceil(high / factor), math.ceil(wide / factor)) for high, wide in patches]
    return in_prompt_order(
        config,
        inputs,
        [
            (Visual(rows * columns, (rows, columns), pixels=("pixel_values", row, row + 1)),)
            for row, (rows, columns) in enumerate(grids)
        ],
    )


LFM2_VL = Family(
    name="lfm2_vl",
    layout=layout,
    final_norm="embedding_norm",
    mlp="feed_forward",
    refused=everywhere(CONVOLUTION),
)
