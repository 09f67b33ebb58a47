"""Kept tokens over their picture: drawn (kept tokens are bright, the others dark), and as data for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageEnhance

from tokenprune.report.data.groups import subjects_of
from tokenprune.sweep.store.atomic_io import OutsideError, inside
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData

MIN_SIDE = 256
"""Small pictures are enlarged to this width, so that single tokens can be seen."""

_LARGEST = 2048
"""Pictures are not enlarged beyond it."""

_CELL = 4
"""Pixels of a token's rectangle, at least: a picture with less is stretched."""

MAX_SIDE = 448
"""Larger pictures are scaled down: the page shows where tokens lie, it is no archive of the data set."""

_SMALL = 128 * 128
"""Pictures of up to this many pixels stay as they are; larger ones become JPEG."""

_OUTLINE = (255, 210, 0)
_REASONS = ((255, 210, 0), (0, 200, 255), (255, 90, 160), (140, 255, 90))
_MARGIN = 6
_LINE = 13


def draw_kept(
    image: Image.Image, grid: tuple[int, int], kept: Sequence[int], labels: Sequence[str] = ()
) -> Image.Image:
    """Draw the kept tokens of one image.

    Args:
        image: The picture that was asked about.
        grid: Rows and columns of its tokens.
        kept: Indices of the tokens that stayed, in raster order of the grid.
        labels: Reason per kept token; each reason gets a frame of its own colour.

    Returns:
        An RGB picture at least 256 pixels wide.

    Example:
        >>> from PIL import Image
        >>> from tokenprune.report import draw_kept
        >>> draw_kept(Image.open("docs/examples/circle.png"), grid=(16, 16), kept=[0, 17, 34]).mode
        'RGB'
    """
    rows, columns = grid
    scale = max(1, min(-(-MIN_SIDE // image.width), _LARGEST // max(image.size)))
    width = max(image.width * scale, MIN_SIDE, columns * _CELL)
    height = max(image.height * scale, rows * _CELL)
    bright = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    picture = ImageEnhance.Brightness(ImageEnhance.Color(bright).enhance(0.3)).enhance(0.28)
    drawing = ImageDraw.Draw(picture)
    reasons = list(dict.fromkeys(labels))
    for place, index in enumerate(kept):
        row, column = divmod(int(index), columns)
        box = (
            round(column * bright.width / columns),
            round(row * bright.height / rows),
            round((column + 1) * bright.width / columns),
            round((row + 1) * bright.height / rows),
        )
        picture.paste(bright.crop(box), box[:2])
        colour = _REASONS[reasons.index(labels[place]) % len(_REASONS)] if labels else _OUTLINE
        drawing.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=colour)
    return picture


def side_by_side(panels: Sequence[tuple[Image.Image, str]], *, columns: int = 0) -> Image.Image:
    """Pictures in a row (or in several, with `columns`), each with its caption below.

    Raises:
        ValueError: There are no panels.
    """
    if not panels:
        raise ValueError("no panels to put side by side")
    columns = columns or len(panels)
    width = max(picture.width for picture, _ in panels)
    height = max(picture.height for picture, _ in panels)
    captions = [_wrap(caption, width) for _, caption in panels]
    below = _LINE * max(len(lines) for lines in captions) + _MARGIN
    rows = -(-len(panels) // columns)
    size = (columns * (width + _MARGIN) + _MARGIN, rows * (height + below + _MARGIN) + _MARGIN)
    canvas = Image.new("RGB", size, "white")
    drawing = ImageDraw.Draw(canvas)
    for place, ((picture, _), lines) in enumerate(zip(panels, captions, strict=True)):
        row, column = divmod(place, columns)
        left, top = _MARGIN + column * (width + _MARGIN), _MARGIN + row * (height + below + _MARGIN)
        canvas.paste(picture, (left, top))
        for number, line in enumerate(lines):
            drawing.text((left, top + height + 2 + number * _LINE), line, fill="black")
    return canvas


def stored_overlay(directory: Path, entry: Mapping[str, Any], caption: str = "") -> Image.Image:
    """The overlay of one sample of a cell's `overlays.json`.

    Args:
        directory: The sweep directory.
        entry: One element of `samples`.
        caption: Text below; the question, the answer and the prediction if it is empty.

    Raises:
        OutsideError: A picture of the entry does not lie in the sweep directory.
    """
    text = caption or f"{entry['question']} {entry['answer']} | said: {entry['prediction']}"
    panels = []
    for place, image in enumerate(entry["images"]):
        with Image.open(inside(directory, "pictures", image["picture"])) as picture:
            drawn = draw_kept(picture, tuple(image["grid"]), image["kept"], image["labels"])
        panels.append((drawn, text if place == 0 else ""))
    return side_by_side(panels)


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _wrap(text: str, width: int) -> list[str]:
    """Break a caption at spaces to fit (the default bitmap font is about 6 pixels wide)."""
    room = max(8, width // 6)
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            if line and len(line) + 1 + len(word) > room:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines


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
    for model, task, groups in subjects_of(data):
        entries = [entry for group in groups[:1] for entry in group.unpruned]
        entries += [entry for group in groups for cells in group.pruned.values() for entry in cells]
        samples: dict[int, dict[str, Any]] = {}
        shown_cells = []
        for entry in entries:
            stored = data.store.overlays(entry.cell.id) if entry.state == "done" else []
            if stored:
                shown_cells.append(_cell(entry, stored))
            for sample in stored:
                names = [image["picture"] for image in sample["images"]]
                facts = {name: sample[name] for name in ("index", "question", "answer", "family")}
                samples.setdefault(sample["index"], {**facts, "pictures": names})
                for name in names:
                    if name not in pictures:
                        pictures[name] = _picture(data.store.directory, name)
        shown = [sample for _, sample in sorted(samples.items()) if all(map(pictures.get, sample["pictures"]))]
        if shown:
            subjects.append({"model": model, "task": task, "samples": shown, "cells": shown_cells})
    found = {name: url for name, url in pictures.items() if url is not None}
    return {"pictures": found, "subjects": subjects, "lost": [name for name in pictures if name not in found]}


def _picture(directory: Path, name: str) -> str | None:
    """A sweep's picture as text; `None` if the directory has none of that name, or if it is damaged.

    People mail the page, so it shows no file from outside the directory.
    """
    try:
        return data_url(inside(directory, "pictures", name))
    except (OSError, OutsideError):  # Pillow's own error for a damaged file is an OSError
        return None


def data_url(path: Path) -> str:
    """A picture as text that a page can hold, scaled down if it is large."""
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
