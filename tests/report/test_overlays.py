from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.sweep.fixtures import FinishedSweep
from tests.sweep.tiny import TOKENS
from tokenprune.report import draw_kept, side_by_side
from tokenprune.report.render.kept_tokens import MIN_SIDE, png_bytes, stored_overlay
from tokenprune.sweep import SweepStore

WHITE = Image.new("RGB", (32, 32), "white")


def middle(picture: Image.Image, grid: tuple[int, int], index: int) -> tuple[int, int, int]:
    row, column = divmod(index, grid[1])
    place = (int((column + 0.5) * picture.width / grid[1]), int((row + 0.5) * picture.height / grid[0]))
    return picture.getpixel(place)  # type: ignore[return-value]


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (3, 5)])
def test_kept_tokens_are_bright_and_the_others_dark(grid: tuple[int, int]) -> None:
    kept = [0, 3, grid[0] * grid[1] - 1]
    picture = draw_kept(WHITE, grid, kept)
    assert picture.width >= MIN_SIDE
    for index in range(grid[0] * grid[1]):
        bright = middle(picture, grid, index) == (255, 255, 255)
        assert bright == (index in kept), index


@pytest.mark.parametrize("size", [(3, 1000), (1000, 3), (1, 1), (1, 5000)])
def test_thin_pictures_show_every_token(size: tuple[int, int]) -> None:
    picture = draw_kept(Image.new("RGB", size, "white"), (6, 5), range(0, 30, 2))
    assert picture.width >= MIN_SIDE
    assert max(picture.size) <= max(2048, *size)
    for index in range(30):
        assert (middle(picture, (6, 5), index) == (255, 255, 255)) == (index % 2 == 0), index


def test_reasons_have_colours_of_their_own() -> None:
    picture = np.asarray(draw_kept(WHITE, (2, 2), [0, 1, 3], ["important", "diverse", "important"]))
    corner = {index: tuple(picture[(index // 2) * 128, (index % 2) * 128]) for index in (0, 1, 3)}
    assert corner[0] == corner[3] != corner[1]


def test_panels_in_rows_with_captions() -> None:
    panels = [(draw_kept(WHITE, (4, 4), [index]), f"pruner {index}\nsaid: red") for index in range(5)]
    wide, tall = side_by_side(panels), side_by_side(panels, columns=2)
    assert wide.width > 5 * MIN_SIDE
    assert tall.height > 3 * MIN_SIDE
    below = np.asarray(wide)[MIN_SIDE + 8 :, :MIN_SIDE]
    assert (below < 100).any()  # a caption was written
    with pytest.raises(ValueError, match="no panels"):
        side_by_side([])


def test_stored_overlays_show_what_was_kept(finished: FinishedSweep) -> None:
    store = SweepStore(finished.directory)
    counts = {}
    for cell in store.plan():
        stored = store.overlays(cell.id)
        if not stored:
            continue
        assert [entry["index"] for entry in stored] == [0, 1]
        (image,) = stored[0]["images"]
        assert image["grid"] == [4, 4]
        counts[cell.name] = len(image["kept"])
        reread = Image.open(io.BytesIO(png_bytes(stored_overlay(finished.directory, stored[0]))))
        assert reread.width > MIN_SIDE
    assert counts["none/toy@all"] == TOKENS
    assert counts["first/toy@4"] == 4
    assert counts["grid/toy@50%"] == TOKENS // 2
    assert len(list((finished.directory / "pictures").iterdir())) == 2  # once per sweep, not once per cell
