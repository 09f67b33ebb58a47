"""Mistral 3: images of any aspect, patches merged two by two; every row ends in a break token with an id of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.models.family import Family, Visual
from tokenprune.models.layouts import in_prompt_order


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every image by its size; its rows are runs of their own.

    Raises:
        IncompatibleError: Placeholders and sizes do not add up.
    """
    del runs
    cell = int(config.vision_config.patch_size) * int(config.spatial_merge_size)
    sizes = inputs.get("image_sizes")
    grids = [(high // cell, wide // cell) for high, wide in ([] if sizes is None else sizes.tolist())]
    return in_prompt_order(
        config,
        inputs,
        [
            (Visual(rows * columns, (rows, columns), pixels=("pixel_values", row, row + 1)),)
            for row, (rows, columns) in enumerate(grids)
        ],
    )


MISTRAL3 = Family(name="mistral3", layout=layout)
