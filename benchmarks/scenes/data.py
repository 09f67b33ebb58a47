"""The pool of training pictures: rendered once, in shards, by a process beside the training."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenprune.tasks.scenes.generator import (
    COLOURS,
    KINDS,
    MAX_OBJECTS,
    SIZE,
    Scene,
    render,
    sample_scene,
)
from tokenprune.tasks.scenes.task import STREAMS

SHARD: Final = 2000
TRAIN_SHARDS: Final = 20
EASY_SHARDS: Final = 4
"""The first shards have two to four objects per picture: the start of the curriculum."""
COLUMNS: Final = 6
"""Columns of the object table: kind, colour, value, x, y, radius."""


@dataclass(frozen=True)
class Shard:
    """Rendered pictures and what is in them.

    Attributes:
        pixels: Memory-mapped pictures; (S, SIZE, SIZE, 3).
        objects: Object table, kind -1 where there is none; (S, MAX_OBJECTS, COLUMNS).
        scenes: What was painted.
    """

    pixels: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.float32]
    scenes: list[Scene]


def object_table(scenes: list[Scene]) -> npt.NDArray[np.float32]:
    """The objects of every scene as numbers; (S, MAX_OBJECTS, COLUMNS)."""
    colours = list(COLOURS)
    table = np.full((len(scenes), MAX_OBJECTS, COLUMNS), -1, dtype=np.float32)
    for row, scene in zip(table, scenes, strict=True):
        for cell, item in zip(row, scene.objects, strict=False):
            kind, colour = KINDS.index(item.kind), colours.index(item.colour)
            cell[:] = (kind, colour, item.value, item.x, item.y, item.radius)
    return table


def _path(folder: Path, split: str, number: int, ending: str) -> Path:
    return folder / "pool" / f"{split}-{number:03d}.{ending}"


def write_shard(folder: Path, split: str, number: int, size: int = SHARD) -> None:
    """Render one shard; the pickle comes last and marks it as complete."""
    done = _path(folder, split, number, "pickle")
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    easy = split == "train" and number < EASY_SHARDS
    low, high = (2, 4) if easy else (4, MAX_OBJECTS)
    scenes = []
    pixels = np.empty((size, SIZE, SIZE, 3), dtype=np.uint8)
    for index in range(size):
        rng = np.random.default_rng([STREAMS[split], number, index])
        scene = sample_scene(rng, split, low, high)
        scenes.append(scene)
        pixels[index] = render(scene)
    np.save(_path(folder, split, number, "npy"), pixels)
    partial = done.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(scenes))
    partial.replace(done)


def read_shard(folder: Path, split: str, number: int) -> Shard | None:
    """Read a shard, or None while it is not there."""
    done = _path(folder, split, number, "pickle")
    if not done.exists():
        return None
    scenes: list[Scene] = pickle.loads(done.read_bytes())
    pixels = np.load(_path(folder, split, number, "npy"), mmap_mode="r")
    return Shard(pixels, object_table(scenes), scenes)


def main() -> None:
    """Render the whole pool, validation first, hard and easy shards in turn."""
    folder = Path(sys.argv[1])
    write_shard(folder, "validation", 0)
    order = [EASY_SHARDS, 0, *range(EASY_SHARDS + 1, TRAIN_SHARDS), *range(1, EASY_SHARDS)]
    for number in order:
        write_shard(folder, "train", number)


if __name__ == "__main__":
    main()
