"""Pictures from the cells of a table, in every form in which people store them."""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

from tokenprune.errors import ConfigError
from tokenprune.tasks.pictures import first_frame, read_picture
from tokenprune.tasks.table.source import inside

#: A cell of at most so many characters may name another row that holds the picture.
LONGEST_REFERENCE: Final = 64
#: A text of more characters is no path.
_LONGEST_PATH: Final = 1024
_SIGNATURES: Final = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_DATA_URL: Final = re.compile(r"data:[\w.+/-]*(;[\w.=+-]+)*;base64,", re.IGNORECASE)
_URL: Final = re.compile(r"(https?|s3|gs|hf|ftp)://", re.IGNORECASE)
_ALLOWED: Final = "a picture's bytes, base64 text, a path, a dict with `bytes` or `path`, or a list of these"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell is, for messages."""

    table: str
    row: int
    column: str

    def __str__(self) -> str:
        return f"row {self.row} (counted from 0), column `{self.column}` of `{self.table}`"


def absent(cell: Any) -> bool:
    """Whether a cell is empty: None, not a number, blank text, or the text `nan`."""
    if isinstance(cell, str):
        return cell.strip() in ("", "nan")
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def listed(text: str) -> list[Any] | None:
    """The list that a text holds as JSON or as a Python literal; None if it holds none."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            read = parse(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(read, list):
            return read
    return None


def pictures(
    cell: Any, place: Place, folder: Path, other: Callable[[str], Any] = lambda _: None
) -> tuple[Image.Image, ...]:
    """The pictures of a cell in plain RGB, in their order; none if the cell is empty.

    Args:
        cell: Bytes, base64 text with or without the prefix of a data URL, a path, a dict with `bytes` or `path`,
            a list of these, or such a list as text.
        place: Where the cell is, for messages.
        folder: Relative paths start here and must not leave it.
        other: Gives the cell of the row that a short text refers to, or None if it refers to no other row.

    Raises:
        ConfigError: The cell holds something else, or a picture of it is missing or damaged.
    """
    try:
        return tuple(_picture(leaf, place, folder) for leaf in _leaves(_followed(cell, place, other), place))
    except ConfigError as error:
        if str(place) in error.message:
            raise
        raise ConfigError(f"{place}: {error.message}", hint=error.hint) from error


def picture_files(
    cell: Any, place: Place, folder: Path, other: Callable[[str], Any] = lambda _: None
) -> tuple[Path, ...]:
    """The files that a cell names; the arguments and the errors are those of `pictures`."""
    leaves = _leaves(_followed(cell, place, other), place)
    return tuple(leaf for leaf in (_content(each, place, folder) for each in leaves) if isinstance(leaf, Path))


def _followed(cell: Any, place: Place, other: Callable[[str], Any]) -> Any:
    """The cell, or the cell of another row if it refers to that."""
    if not isinstance(cell, str) or absent(cell) or len(cell) > LONGEST_REFERENCE:
        return cell
    found = other(cell.strip())
    if found is None:
        return cell
    if isinstance(found, str) and len(found) <= LONGEST_REFERENCE and other(found.strip()) is not None:
        raise ConfigError(
            f"{place}: the cell refers to row `{cell.strip()}`, which refers to row `{found.strip()}`",
            hint="refer to the row that holds the picture",
        )
    return found


def _leaves(cell: Any, place: Place) -> Iterator[Any]:
    """The single pictures of a cell."""
    if absent(cell):
        return
    if isinstance(cell, str) and cell.lstrip().startswith("[") and cell.rstrip().endswith("]"):
        parsed = listed(cell)
        if parsed is None:
            raise ConfigError(
                f"{place}: the text begins with `[` and is no list", hint='write a JSON list, for example ["a.png"]'
            )
        cell = parsed
    if not isinstance(cell, (list, tuple)):
        yield cell
        return
    for number, each in enumerate(cell):
        if absent(each) or isinstance(each, (list, tuple)):
            what = "a list" if isinstance(each, (list, tuple)) else "empty"
            raise ConfigError(f"{place}: picture {number} of the list is {what}", hint=f"write {_ALLOWED}")
        yield each


def _picture(leaf: Any, place: Place, folder: Path) -> Image.Image:
    content = _content(leaf, place, folder)

    def tell(sentence: str) -> None:
        warnings.warn(f"{place}: {sentence}", stacklevel=2)

    return read_picture(content, tell) if isinstance(content, Path) else _from_bytes(content, place, tell)


def _content(leaf: Any, place: Place, folder: Path) -> bytes | Path:
    """The encoded picture, or the file that holds it."""
    if isinstance(leaf, (bytes, bytearray, memoryview)):
        return bytes(leaf)
    if isinstance(leaf, str):
        return _from_text(leaf.strip(), place, folder)
    if isinstance(leaf, Mapping) and ("bytes" in leaf or "path" in leaf):
        inner = leaf.get("bytes")
        if inner is not None and not isinstance(inner, (bytes, bytearray, memoryview, str)):
            raise ConfigError(f"{place}: `bytes` is a {type(inner).__name__}", hint=f"write {_ALLOWED}")
        if inner is not None:
            return _decoded(inner, place) if isinstance(inner, str) else bytes(inner)
        path = leaf.get("path")
        if isinstance(path, str) and path.strip():
            return _from_text(path.strip(), place, folder)
        raise ConfigError(f"{place}: both `bytes` and `path` are empty", hint=f"write {_ALLOWED}")
    raise ConfigError(f"{place}: a {type(leaf).__name__} is no picture", hint=f"write {_ALLOWED}")


def _from_text(text: str, place: Place, folder: Path) -> bytes | Path:
    """A text is base64 if it begins like a picture in base64, or if it is too long for a path."""
    prefix = _DATA_URL.match(text)
    if prefix:
        return _decoded(text[prefix.end() :], place)
    if _URL.match(text):
        raise ConfigError(f"{place}: `{_short(text)}` is on the net", hint="download the picture and write its path")
    if _begins_like_a_picture(text) or len(text) > _LONGEST_PATH:
        return _decoded(text, place)
    path = inside(folder, text, str(place))
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise ConfigError(
            f"{place}: `{_short(text)}` is no file in the folder of the table and no picture in base64",
            hint="write a path relative to the folder of the table, or the picture itself",
        )
    return path


def _begins_like_a_picture(text: str) -> bool:
    """Whether the first bytes, read as base64, are those of a picture."""
    head = "".join(text[:48].split())[:16]
    if len(head) < 16 or len(text) < 40:
        return False
    try:
        return base64.b64decode(head, validate=True).startswith(_SIGNATURES)
    except (binascii.Error, ValueError):
        return False


def _decoded(text: str, place: Place) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(
            f"{place}: broken base64 ({str(error)[:80]}) in a text of {len(text)} characters",
            hint="encode the picture again with `base64.b64encode(data).decode()`",
        ) from None


def _from_bytes(data: bytes, place: Place, tell: Callable[[str], None]) -> Image.Image:
    """An encoded picture in plain RGB; of an animation, the first frame."""
    try:
        shown, frames = first_frame(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ConfigError(
            f"{place}: {len(data)} bytes are no picture of a known format", hint="store a PNG, JPEG, WebP, GIF or TIFF"
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # damaged headers end in errors of many kinds inside the decoders
        raise ConfigError(f"{place}: cannot read the picture: {error}", hint="store it again as PNG or JPEG") from error
    if frames > 1:
        tell(f"the cell holds {frames} pictures; only the first one is used")
    return shown


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"
