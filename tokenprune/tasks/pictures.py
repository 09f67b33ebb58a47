"""Pictures as people have them: any mode, turned by a camera, transparent, deep, damaged; one way to plain RGB.

Models want eight bits of red, green and blue. `as_rgb` gives them that from every picture that has one right reading
and refuses the others; a picture that is plain RGB already comes back as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tokenprune.errors import ConfigError

#: What shows through transparent pixels, as on a page.
BACKGROUND = (255, 255, 255)
_ORIENTATION = 0x0112
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_LARGEST_16 = 65535
#: File formats in which Pillow's mode `I` (32 bits) holds 16-bit values.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
#: Formats with further pictures that are neither frames nor pages: thumbnails, depth, the other eye.
_NO_FRAMES = ("MPO",)


def first_frame(file: str | Path | IO[bytes], name: str = "the picture") -> tuple[Image.Image, int]:
    """The first frame or page of a file as plain RGB, and how many frames or pages it has.

    Args:
        file: Its path, or the open file.
        name: What messages call it.

    Raises:
        ConfigError: Its values have no one reading (`as_rgb`).
        Exception: It is missing, damaged or no picture: whatever Pillow raises then.
    """
    with Image.open(file) as image:
        frames = getattr(image, "n_frames", 1)
        read = as_rgb(image, name)
        return read.copy() if read is image else read, 1 if image.format in _NO_FRAMES else frames


def read_picture(path: str | Path, tell: Callable[[str], object] = warnings.warn) -> Image.Image:
    """A picture file as plain RGB; of an animation or a document with pages, the first one.

    Args:
        path: Its file.
        tell: Is called with a sentence if only a part of the file is used.

    Raises:
        ConfigError: There is no such file, it is damaged or no picture, or its values have no one reading (`as_rgb`).
    """
    try:
        shown, frames = first_frame(path, str(path))
    except FileNotFoundError:
        raise ConfigError(f"no file `{path}`", hint="give the path of a picture") from None
    except UnidentifiedImageError:
        raise ConfigError(
            f"cannot read `{path}` as a picture: its format is unknown", hint="give a PNG, JPEG, WebP, GIF or TIFF file"
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # damaged headers end in errors of many kinds inside the decoders
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"cannot read `{path}` as a picture: {reason}", hint="give a PNG or JPEG file") from error
    if frames > 1:
        tell(f"`{path}` holds {frames} pictures; only the first one is used")
    return shown


def as_rgb(image: Image.Image, name: str = "the picture") -> Image.Image:
    """A picture of any mode as a person sees it, in plain RGB of eight bits.

    - A camera's orientation (EXIF) is applied.
    - Transparent pixels show white, as on a page, not the colour that is stored below.
    - 16-bit greys are scaled to 8 bits; so are floats between 0 and 1.
    - Palettes, 1-bit, CMYK and other colour spaces are converted; colour profiles are not applied.

    Args:
        image: The picture; of an animation, the frame that it stands at. Plain RGB comes back as the same object.
        name: What to call it in messages.

    Raises:
        ConfigError: It is no PIL image, its data are damaged, or its values have no one reading.
    """
    if not isinstance(image, Image.Image):
        raise ConfigError(
            f"{name} must be a PIL image, got {type(image).__name__}",
            hint="make one with `PIL.Image.fromarray(array)` or `tokenprune.tasks.pictures.read_picture(path)`",
        )
    try:
        image.load()
        turned = _turned(image)
        if turned.mode == "RGB" and not turned.has_transparency_data:
            return turned
        return _converted(turned, name)
    except ConfigError:
        raise
    except Exception as error:  # and so do damaged data
        raise ConfigError(
            f"cannot read {_told(name)}: its data are damaged or not supported ({error})",
            hint="save it again as PNG or JPEG",
        ) from error


def _turned(image: Image.Image) -> Image.Image:
    """The picture upright; metadata that cannot be read count as none."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - parsers of damaged metadata fail in many ways, the pixels are whole
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _converted(image: Image.Image, name: str) -> Image.Image:
    """Another mode as RGB."""
    if image.mode in _DEEP or image.mode in ("I", "F"):
        grey = Image.fromarray(_eight_bits(image, name))
        hidden = image.info.get("transparency")
        if hidden is not None:
            grey.paste(255, mask=Image.fromarray(np.asarray(image) == hidden))
        return grey.convert("RGB")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Greys of more than eight bits, scaled to 0..255, (height, width).

    Raises:
        ConfigError: The largest possible value is not known.
    """
    values: NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        if not bool(((values >= 0.0) & (values <= 1.0)).all()):
            raise _unknown_range(name, values, "floats between 0 and 1", "divide them by the largest possible value")
        return np.rint(values * 255.0).astype(np.uint8)
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS and not _needs_16_bits(values):
        raise _unknown_range(name, values, "whole numbers of 16 bits", "convert it to mode `L` or `I;16`")
    return ((values.astype(np.int64) * 255 + _LARGEST_16 // 2) // _LARGEST_16).astype(np.uint8)


def _needs_16_bits(values: NDArray[Any]) -> bool:
    """Whether whole numbers fit into 16 bits and not into 8; less says nothing about the largest possible value."""
    return int(values.min()) >= 0 and 255 < int(values.max()) <= _LARGEST_16


def _unknown_range(name: str, values: NDArray[Any], allowed: str, hint: str) -> ConfigError:
    return ConfigError(
        f"cannot tell black and white in {_told(name)}: its values go from {values.min()} to {values.max()}, "
        f"allowed are {allowed}",
        hint=hint,
    )


def _told(name: str) -> str:
    return name if " " in name else f"`{name}`"
