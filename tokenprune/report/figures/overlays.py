"""Kept tokens drawn over the picture: what stayed is bright, what went is dark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageEnhance

from tokenprune.sweep.store.atomic_io import inside

MIN_SIDE = 256
"""Small pictures are enlarged to this width, so that single tokens can be seen."""

_MAX_SIDE = 2048
"""Pictures are not enlarged beyond it."""

_CELL = 4
"""Pixels of a token's rectangle, at least: a picture with less is stretched."""

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
    """
    rows, columns = grid
    scale = max(1, min(-(-MIN_SIDE // image.width), _MAX_SIDE // max(image.size)))
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
        caption: Text below; the question, the answer and the prediction where it is empty.

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
