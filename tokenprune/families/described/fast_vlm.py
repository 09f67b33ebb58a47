"""FastVLM: a convolutional tower without attention layers to observe; one grid per image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, Visual
from tokenprune.families.layouts import HINT, equal_grids, tensor
from tokenprune.families.reasons import NO_ENCODER_ATTENTION


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every image is one grid of square cells; the config lacks the tower's stride, so the counts give the cell size.

    Raises:
        IncompatibleError: Placeholders and pixels do not match.
    """
    del config
    if not runs:
        return []
    images, _, high, wide = tensor(inputs, "pixel_values").shape
    cell = max(1, round(math.sqrt(images * high * wide / sum(runs))))
    rows, columns = high // cell, wide // cell
    if images * rows * columns != sum(runs):
        raise IncompatibleError(
            f"{sum(runs)} image placeholders are not {images} grids of {high} x {wide} pixels", hint=HINT
        )
    return equal_grids(runs, rows, columns)


FAST_VLM = Family(name="fast_vlm", layout=layout, blind=NO_ENCODER_ATTENTION)
