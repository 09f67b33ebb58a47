"""What overlays are drawn from: a few pictures, kept once per sweep, and the kept tokens of each cell."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokenprune.cells.cell import Cell
from tokenprune.metrics.lens import Cut, KeptTokens
from tokenprune.sweep.store.result_store import write_bytes
from tokenprune.tasks.base import Sample

Grid = tuple[int, int]
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


def save_overlays(
    directory: Path,
    cell: Cell,
    samples: Mapping[int, Sample] | Sequence[Sample],
    grids: Mapping[int, Sequence[Grid]] | Sequence[Sequence[Grid]],
    kept: Mapping[int, KeptTokens],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Store the first samples' pictures (once per sweep) and say which of their tokens stayed.

    Args:
        directory: The sweep directory.
        cell: The cell.
        samples: The samples that are drawn, sample `i` at place `i`.
        grids: Per sample, the token grid (rows, columns) of each of its units. A sample is left out if these are not
            its pictures but tiles of them, because a tile's place in the picture is not known.
        kept: Per sample index, its cuts.
        rows: Sample rows of the cell.

    Returns:
        What `overlays.json` holds.
    """
    entries = []
    for index, cuts in sorted(kept.items()):
        if len(grids[index]) != len(samples[index].images):
            continue
        final = cuts.final()
        if samples[index].video and 0 in final:
            final = _by_frame(final[0], grids[index])
        images = []
        for place, (image, grid) in enumerate(zip(samples[index].images, grids[index], strict=True)):
            digest = _NOT_IN_NAMES.sub("-", cell.task_digest[:8])  # a plugin's task may give any text
            name = f"{cell.task}-{digest}-{index}-{place}.png"
            _save_picture(directory / "pictures" / name, image)
            cut = final.get(place)
            images.append(
                {
                    "picture": name,
                    "grid": list(grid),
                    "kept": list(range(grid[0] * grid[1])) if cut is None else list(cut.indices),
                    "labels": [] if cut is None else list(cut.labels),
                    "site": "" if cut is None else cut.site,
                }
            )
        fields = ("index", "id", "family", "question", "answer", "prediction", "score")
        entries.append({**{name: rows[index][name] for name in fields}, "images": images})
    return {"samples": entries}


def _by_frame(cut: Cut, grids: Sequence[Grid]) -> dict[int, Cut]:
    """What a cut of a whole video left of each of its frames."""
    size = grids[0][0] * grids[0][1]
    labels = cut.labels or ("",) * len(cut.indices)
    frames = {}
    for frame in range(len(grids)):
        held = [(i - frame * size, label) for i, label in zip(cut.indices, labels, strict=True) if i // size == frame]
        indices, reasons = [i for i, _ in held], [label for _, label in held if label]
        frames[frame] = dataclasses.replace(cut, image=frame, indices=tuple(indices), labels=tuple(reasons))
    return frames


def _save_picture(path: Path, image: Image.Image) -> None:
    if path.is_file():
        return
    path.parent.mkdir(exist_ok=True)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="PNG")
    write_bytes(path, stream.getvalue())
