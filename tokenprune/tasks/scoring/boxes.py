"""Boxes in answers, and how well they fit (RefCOCO). Source: lmms-eval 0.7.3."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STRICT: Final = r"-?\d+(?:\.\d+)?"
_LENIENT: Final = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_SEPARATOR: Final = r"\s*,\s*"
_PUBLISHED: Final = re.compile(r"\[\s*" + _SEPARATOR.join([f"({_STRICT})"] * 4) + r"\s*\]")
_SOUND: Final = re.compile(r"[\[(]\s*" + _SEPARATOR.join([f"({_LENIENT})"] * 4) + r"\s*[\])]")


@dataclass(frozen=True)
class Box:
    """A rectangle by two corners.

    Attributes:
        left: Smallest x.
        top: Smallest y.
        right: Largest x.
        bottom: Largest y.
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Area; 0 if the corners are in the wrong order."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def divided(self, width: float, height: float) -> Box:
        """The box in other units: pixels divided by the image size, or parts of 1000 divided by 1000."""
        return Box(self.left / width, self.top / height, self.right / width, self.bottom / height)


def read_box(answer: str, *, published: bool = False) -> Box | None:
    """The first box in an answer.

    Accidents of the published rule, and the sound form:

    - It wants square brackets and a digit before the point. Sound: round brackets and `.1` are read, too.
    - An answer without a box becomes the box of four zeros, whose centre hits a reference at the corner.
      Sound: `None`, which scores 0 everywhere.
    """
    found = (_PUBLISHED if published else _SOUND).search(answer)
    if found is None:
        return Box(0.0, 0.0, 0.0, 0.0) if published else None
    left, top, right, bottom = (float(number) for number in found.groups())
    return Box(left, top, right, bottom)


def iou(prediction: Box | None, reference: Box) -> float:
    """Intersection over union; 0 without a box, and 0 if both boxes are empty."""
    if prediction is None:
        return 0.0
    shared = Box(
        max(prediction.left, reference.left),
        max(prediction.top, reference.top),
        min(prediction.right, reference.right),
        min(prediction.bottom, reference.bottom),
    ).area
    union = prediction.area + reference.area - shared
    return shared / union if union > 0 else 0.0


def iou_at_least(prediction: Box | None, reference: Box, threshold: float = 0.5) -> float:
    """1 if the intersection over union reaches the threshold, otherwise 0."""
    return float(prediction is not None and iou(prediction, reference) >= threshold)


def centre_inside(prediction: Box | None, reference: Box) -> float:
    """1 if the centre of the box lies in the reference box, borders included; otherwise 0."""
    if prediction is None:
        return 0.0
    x, y = (prediction.left + prediction.right) / 2, (prediction.top + prediction.bottom) / 2
    return float(reference.left <= x <= reference.right and reference.top <= y <= reference.bottom)
