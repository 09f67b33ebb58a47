"""Ovis2: the whole picture first, then square tiles with marks between them; every tile is one unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.models.family import Family, Visual
from tokenprune.models.layouts import equal_grids, patches_per_side


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every tile is one grid; its pixels are the row of its own number.

    Raises:
        IncompatibleError: The placeholders are no whole number of tiles.
    """
    del inputs
    side = math.ceil(patches_per_side(config) / int(config.vision_config.hidden_stride))  # the model pads a rest
    return equal_grids(runs, side, side)


OVIS2 = Family(name="ovis2", layout=layout)
