"""Pictures from cells of every form, and what is said of broken ones."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tasks.table.making import in_base64, picture, pixels, png
from tokenprune.errors import ConfigError
from tokenprune.tasks.table.cells import Place, picture_files, pictures

PLACE = Place("my.tsv", 3, "image")
SAID = "row 3 (counted from 0), column `image` of `my.tsv`"


def forms(folder: Path) -> dict[str, Any]:
    (folder / "sub").mkdir()
    (folder / "sub/a.png").write_bytes(png())
    text = in_base64()
    jpeg = io.BytesIO()
    picture().save(jpeg, "JPEG")
    assert base64.b64encode(jpeg.getvalue()).startswith(b"/9j/")
    return {
        "bytes": png(),
        "dict with bytes": {"bytes": png(), "path": "elsewhere.png"},
        "dict with a path": {"bytes": None, "path": "sub/a.png"},
        "base64": text,
        "base64 in lines": "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        "data URL": f"data:image/png;base64,{text}",
        "path": "sub/a.png",
        "path with dots": "sub/../sub/./a.png",
        "absolute path": str(folder / "sub/a.png"),
        "list of one as text": f"['{text}']",
    }


FORMS = ("bytes", "dict with bytes", "dict with a path", "base64", "base64 in lines", "data URL", "path")


@pytest.mark.parametrize("form", [*FORMS, "path with dots", "absolute path", "list of one as text"])
def test_a_picture_in_every_form(form: str, tmp_path: Path) -> None:
    cell = forms(tmp_path)[form]
    (found,) = pictures(cell, PLACE, tmp_path)
    assert pixels(found) == pixels(0)
    assert picture_files(cell, PLACE, tmp_path) == ((tmp_path / "sub/a.png",) if "path" in form else ())


def test_base64_of_a_jpeg_is_no_absolute_path(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture().save(stream, "JPEG")
    (found,) = pictures(base64.b64encode(stream.getvalue()).decode(), PLACE, tmp_path)
    assert found.size == (17, 11)


@pytest.mark.parametrize("as_text", [repr, json.dumps, list])
def test_several_pictures_keep_their_order(as_text: Any, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png(1))
    found = pictures(as_text([in_base64(0), "b.png", in_base64(2)]), PLACE, tmp_path)
    assert [pixels(each) for each in found] == [pixels(0), pixels(1), pixels(2)]
    mixed = pictures([png(4), {"bytes": png(5)}], PLACE, tmp_path)
    assert [pixels(each) for each in mixed] == [pixels(4), pixels(5)]


@pytest.mark.parametrize("cell", [None, "", "  ", "nan", float("nan"), []])
def test_an_empty_cell_has_no_pictures(cell: Any, tmp_path: Path) -> None:
    assert pictures(cell, PLACE, tmp_path) == ()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (333, 7)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    (found,) = pictures(png(picture(0, size)), PLACE, tmp_path)
    assert found.size == size
    assert found.mode == "RGB"


def test_transparent_palettes_and_deep_greys_become_rgb(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=1)
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    found = pictures([stream.getvalue(), png(deep)], PLACE, tmp_path)
    assert [pixels(each) for each in found] == [[[[255, 0, 0], [255, 255, 255]]], [[[0, 0, 0], [255, 255, 255]]]]


def test_of_an_animation_the_first_frame_is_used_and_it_is_said(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (3, 3), "red").save(stream, "GIF", save_all=True, append_images=[Image.new("RGB", (3, 3), "blue")])
    with pytest.warns(UserWarning, match="the cell holds 2 pictures; only the first one is used"):
        (found,) = pictures(stream.getvalue(), PLACE, tmp_path)
    assert pixels(found)[0][0][0] > 250


def test_a_short_cell_refers_to_another_row(tmp_path: Path) -> None:
    cells = {"7": in_base64(1), "8": repr([in_base64(1), in_base64(2)]), "9": "7"}
    assert [pixels(each) for each in pictures("7", PLACE, tmp_path, cells.get)] == [pixels(1)]
    assert [pixels(each) for each in pictures("8", PLACE, tmp_path, cells.get)] == [pixels(1), pixels(2)]
    with pytest.raises(ConfigError, match="the cell refers to row `9`, which refers to row `7`"):
        pictures("9", PLACE, tmp_path, cells.get)
    with pytest.raises(ConfigError, match="`5` is no file in the folder of the table and no picture in base64"):
        pictures("5", PLACE, tmp_path, cells.get)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (in_base64()[:-3], "broken base64"),
        (in_base64()[:60] + "*" + in_base64()[60:], "broken base64"),
        ("x" * 2000 + "!", "broken base64"),
        (in_base64()[:80], "cannot read the picture"),
        ("data:image/png;base64,abc", "broken base64"),
        (b"no picture", "10 bytes are no picture of a known format"),
        ({"bytes": None, "path": None}, "both `bytes` and `path` are empty"),
        ({"url": "x"}, "a dict is no picture"),
        (5, "a int is no picture"),
        ([png(), None], "picture 1 of the list is empty"),
        ([[png()]], "picture 0 of the list is a list"),
        ("[a.png]", "the text begins with `[` and is no list"),
        ("__import__('os').getcwd()", "is no file in the folder of the table"),
        ("[__import__('os').getcwd()]", "the text begins with `[` and is no list"),
        ("../out.png", "the path `../out.png` leaves the folder of the table"),
        ("sub/../../out.png", "the path `sub/../../out.png` leaves the folder of the table"),
        ({"bytes": None, "path": "../out.png"}, "the path `../out.png` leaves the folder of the table"),
        ("https://example.org/a.png", "is on the net"),
        ("missing.png", "`missing.png` is no file in the folder of the table"),
        ("text.png", "cannot read"),
    ],
)
def test_a_broken_cell_is_one_line_with_its_place(cell: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    (tmp_path / "out.png").write_bytes(png())
    (folder / "text.png").write_text("no picture")
    with pytest.raises(ConfigError) as caught:
        pictures(cell, PLACE, folder)
    assert caught.value.message.startswith(SAID)
    assert message in caught.value.message
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message
    assert caught.value.hint
