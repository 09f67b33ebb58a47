"""What the page needs to draw kept tokens by itself: every picture once, and the kept tokens of every cell."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokenprune.report.data.arms import subjects_of
from tokenprune.sweep.store.atomic_io import OutsideError, inside
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData

MAX_SIDE = 448
"""Larger pictures are scaled down: the page shows where tokens lie, it is no archive of the data set."""

_SMALL = 128 * 128
"""Pictures of up to this many pixels stay as they are; larger ones become JPEG."""


def kept_tokens(data: SweepData) -> dict[str, Any]:
    """The stored samples of every cell, as plain JSON types.

    Returns:
        `pictures`: data URLs by file name. `subjects`: per model and task its `samples` (question, answer, names of
        the pictures), and its `cells` (pruner, budget, and per sample the prediction and, per picture, grid, kept
        indices and their reasons). `lost`: names of pictures that are not in the directory any more, or damaged; the
        samples about them are left out.
    """
    pictures: dict[str, str | None] = {}
    subjects = []
    for model, task, arms in subjects_of(data):
        entries = [entry for arm in arms[:1] for entry in arm.unpruned]
        entries += [entry for arm in arms for group in arm.groups.values() for entry in group]
        samples: dict[int, dict[str, Any]] = {}
        cells = []
        for entry in entries:
            stored = data.store.overlays(entry.cell.id) if entry.state == "done" else []
            if stored:
                cells.append(_cell(entry, stored))
            for sample in stored:
                names = [image["picture"] for image in sample["images"]]
                facts = {name: sample[name] for name in ("index", "question", "answer", "family")}
                samples.setdefault(sample["index"], {**facts, "pictures": names})
                for name in names:
                    if name not in pictures:
                        pictures[name] = _picture(data.store.directory, name)
        shown = [sample for _, sample in sorted(samples.items()) if all(map(pictures.get, sample["pictures"]))]
        if shown:
            subjects.append({"model": model, "task": task, "samples": shown, "cells": cells})
    found = {name: url for name, url in pictures.items() if url is not None}
    return {"pictures": found, "subjects": subjects, "lost": [name for name in pictures if name not in found]}


def _picture(directory: Path, name: str) -> str | None:
    """A sweep's picture as text, or `None` where the directory has none of that name: a report is more than pictures.

    A page is made to be given away, so it shows no file from elsewhere.
    """
    try:
        return data_url(inside(directory, "pictures", name))
    except (OSError, OutsideError):  # Pillow's own error for a damaged file is of the first kind, too
        return None


def data_url(path: Path) -> str:
    """A picture as text that a page can hold, scaled down where it is large."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    form, kind = ("PNG", "png") if small.width * small.height <= _SMALL else ("JPEG", "jpeg")
    stream = io.BytesIO()
    small.save(stream, format=form, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _cell(entry: CellRecord, stored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seed = f" seed {entry.cell.seed}" if entry.cell.seed else ""
    return {
        "label": f"{entry.cell.label}{seed}",
        "pruner": entry.cell.label,
        "budget": entry.cell.budget_label,
        "samples": {
            str(sample["index"]): {
                "prediction": sample["prediction"],
                "score": sample["score"],
                "images": [
                    {name: image[name] for name in ("grid", "kept", "labels", "site")} for image in sample["images"]
                ],
            }
            for sample in stored
        },
    }
