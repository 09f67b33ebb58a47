"""Mistral 3: images of any aspect, patches merged two by two; every row ends in a break token with its own id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenprune.families.encoder_rows import EncoderRows, cells, starts_of
from tokenprune.families.family import Family, ObservedEncoder, Visual
from tokenprune.families.layouts import in_prompt_order, named_layer


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """One grid per image, from its size; each row of the grid is one run of placeholders.

    Raises:
        IncompatibleError: Placeholders and sizes do not match.
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


def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
    """Encoder rows: all images packed into one sequence, each in raster order."""
    patch, merge = int(config.vision_config.patch_size), int(config.spatial_merge_size)
    sizes = [(high // patch, wide // patch) for high, wide in inputs["image_sizes"].tolist()]
    starts = starts_of([high * wide for high, wide in sizes])
    images = [
        cells(high, wide, merge, high // merge, wide // merge).shifted(start)
        for (high, wide), start in zip(sizes, starts, strict=False)
    ]
    return EncoderRows(tuple(images[visual.source[1].start] for visual in visuals), starts[-1])


MISTRAL3 = Family(
    name="mistral3",
    layout=layout,
    observed_encoder=ObservedEncoder(
        layers=("model.vision_tower.transformer.layers",), rows=rows, read_layer=named_layer
    ),
)
