"""Pictures of every kind, as a person sees them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenprune.errors import ConfigError
from tokenprune.tasks.pictures import as_rgb, read_picture

RED, WHITE = (255, 0, 0), (255, 255, 255)
RAMP = np.linspace(0, 65535, 48 * 32).round().reshape(32, 48)
NOISE = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)


def colours(image: Image.Image) -> Any:
    assert image.mode == "RGB"
    return np.asarray(image)


def turned(orientation: int) -> Image.Image:
    """The noise as a camera stores it that was held in one of eight ways."""
    ways: dict[int, Any] = {
        1: lambda up: up,
        2: lambda up: up[:, ::-1],
        3: lambda up: up[::-1, ::-1],
        4: lambda up: up[::-1],
        5: lambda up: up.transpose(1, 0, 2),
        6: lambda up: np.rot90(up, 1),
        7: lambda up: np.rot90(up, 2).transpose(1, 0, 2),
        8: lambda up: np.rot90(up, -1),
    }
    image = Image.fromarray(np.ascontiguousarray(ways[orientation](NOISE)))
    image.getexif()[0x0112] = orientation
    return image


def test_plain_rgb_comes_back_as_it_is() -> None:
    image = Image.fromarray(NOISE)
    assert as_rgb(image) is image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_orientation_is_applied_once(orientation: int, tmp_path: Path) -> None:
    stored = turned(orientation)
    upright = as_rgb(stored)
    assert np.array_equal(colours(upright), NOISE)
    assert as_rgb(upright) is upright
    path = tmp_path / "photo.png"
    stored.save(path, exif=stored.getexif())
    assert np.array_equal(colours(read_picture(path)), NOISE)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_greys_keep_their_range(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    read = colours(read_picture(path))
    assert np.abs(read - (RAMP / 257)[:, :, None]).max() <= 0.5 + 1e-9
    assert (read.min(), read.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I", "F"])
def test_deep_greys_in_memory_keep_their_range(mode: str) -> None:
    if mode == "F":
        image = Image.fromarray((RAMP / 65535).astype(np.float32))
    elif mode == "I":
        image = Image.fromarray(RAMP.astype(np.int32))
    else:
        kind = ">u2" if mode.endswith("B") else "<u2"
        image = Image.frombytes(mode, (48, 32), RAMP.astype(kind).tobytes())
    assert image.mode == mode
    assert np.abs(colours(as_rgb(image)) - (RAMP / 257)[:, :, None]).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        (RAMP.astype(np.float32), "its values go from 0.0 to 65535.0, allowed are floats between 0 and 1", "divide"),
        (np.full((2, 2), -0.5, np.float32), "from -0.5 to -0.5", "divide"),
        (np.full((2, 2), np.nan, np.float32), "from nan to nan", "divide"),
        ((RAMP / 257).astype(np.int32), "from 0 to 255, allowed are whole numbers of 16 bits", "`L`"),
        (np.array([[-1, 300]], np.int32), "from -1 to 300", "`L`"),
        (np.array([[0, 70000]], np.int32), "from 0 to 70000", "`L`"),
    ],
)
def test_greys_of_unknown_range_are_refused(values: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="cannot tell black and white in the picture") as caught:
        as_rgb(Image.fromarray(values))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "P", "L", "RGB", "I;16"])
def test_transparent_pixels_show_white(mode: str) -> None:
    if mode in ("P", "L", "RGB", "I;16"):
        image = Image.new(mode, (2, 1), 7 if mode != "RGB" else (7, 7, 7))
        if mode == "P":
            image.putpalette([0] * 21 + list(RED) * 2)
        image.putpixel((1, 0), 8 if mode != "RGB" else (8, 8, 8))
        image.info["transparency"] = (7, 7, 7) if mode == "RGB" else 7
    else:
        kind = "PA" if mode == "PA" else "RGBA"
        black = (0,) if mode == "PA" else (0, 0, 0)
        image = Image.new(kind, (2, 1), (*black, 0))
        image.putpixel((1, 0), (*black, 255))
        image = image.convert(mode)
    hidden, shown = colours(as_rgb(image))[0].tolist()
    assert tuple(hidden) == WHITE
    assert tuple(shown) != WHITE


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert colours(as_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (1, 1), 1), WHITE),
        (Image.new("L", (1, 1), 90), (90, 90, 90)),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 0)), WHITE),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), RED),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), (0, 0, 0)),
        (Image.new("RGB", (1, 1), RED).quantize(2), RED),
        (Image.new("RGB", (1, 1), WHITE).convert("YCbCr"), WHITE),
        (Image.new("RGB", (1, 1), RED).convert("HSV"), RED),
    ],
    ids=["1", "L", "paper", "red ink", "black ink", "P", "YCbCr", "HSV"],
)
def test_other_modes_are_converted(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert tuple(colours(as_rgb(image))[0, 0].tolist()) == expected


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_in_a_file_the_first_one_is_used_and_this_is_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"moving.{suffix}"
    second = Image.new("RGB", (8, 8), (0, 0, 255))
    lossless = {"lossless": True} if suffix == "webp" else {}
    Image.new("RGB", (8, 8), RED).save(path, save_all=True, append_images=[second], **lossless)
    told: list[str] = []
    assert tuple(colours(read_picture(path, told.append))[0, 0].tolist()) == RED
    assert told == [f"`{path}` holds 2 pictures; only the first one is used"]
    with pytest.warns(UserWarning, match="only the first one is used"):
        read_picture(path)


def test_a_single_picture_is_read_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "still.gif"
    Image.new("RGB", (8, 8), RED).save(path)
    told: list[str] = []
    read_picture(path, told.append)
    assert told == []


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("part", [0, 5, 0.5])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_cut_off_files_are_refused_in_one_line(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(NOISE).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part if part >= 1 else part * len(data))])
    with pytest.raises(ConfigError, match="cannot read") as caught:
        read_picture(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_picture(tmp_path / "nowhere.png")
    with pytest.raises(ConfigError, match="as a picture"):
        read_picture(tmp_path)
    with pytest.raises(ConfigError, match="its format is unknown"):
        read_picture(Path(__file__))
    with pytest.raises(ConfigError, match="must be a PIL image, got ndarray") as caught:
        as_rgb(NOISE)  # type: ignore[arg-type]
    assert "fromarray" in caught.value.hint


def test_a_picture_that_is_opened_and_damaged_is_refused_when_it_is_used() -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, format="PNG")
    with pytest.raises(ConfigError, match="a picture of sample `7`: its data are damaged"):
        as_rgb(Image.open(io.BytesIO(stream.getvalue()[:-900])), "a picture of sample `7`")
