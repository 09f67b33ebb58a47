"""Seeded scenes: a few coloured shapes and handwritten digits on a textured background.

A scene is drawn in two steps that can be used apart: `sample_scene` decides what is where (cheap),
`render` paints it. Every random decision comes from one `numpy.random.Generator`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenprune.tasks.scenes.digits import load_bank

SIZE: Final = 128
"""Width and height of a picture in pixels."""
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 75, 220),
    "yellow": (235, 215, 45),
    "purple": (150, 45, 190),
    "cyan": (60, 205, 215),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "cross")
DIGIT: Final = "digit"
KINDS: Final = (*SHAPES, DIGIT)
MIN_OBJECTS: Final = 4
MAX_OBJECTS: Final = 8
GAP: Final = 3.0
"""Smallest distance in pixels between the discs of two objects."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape or digit.

    Attributes:
        kind: One of `KINDS`.
        colour: Name of its colour.
        x: Horizontal centre in pixels.
        y: Vertical centre in pixels.
        radius: Half its size in pixels.
        angle: Rotation in radians.
        rgb: The shade that is painted.
        value: The digit shown; -1 for shapes.
        sample: Position of the handwriting in the digit bank; -1 for shapes.
    """

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]
    value: int = -1
    sample: int = -1

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        r = self.radius
        return (self.x - r, self.y - r, self.x + r, self.y + r)

    def moved(self, dx: float, dy: float) -> SceneObject:
        """The same object elsewhere."""
        return replace(self, x=self.x + dx, y=self.y + dy)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, and the seed of its background."""

    split: str
    objects: tuple[SceneObject, ...]
    texture: int


def sample_object(
    rng: np.random.Generator, split: str, kind: str, colour: str, x: float, y: float, radius: float
) -> SceneObject:
    """Decide the looks (shade, rotation, handwriting) of one object."""
    base = np.array(COLOURS[colour]) + rng.integers(-20, 21, size=3)
    shade = np.clip(base, 0, 255)
    rgb = (int(shade[0]), int(shade[1]), int(shade[2]))
    if kind == DIGIT:
        bank = load_bank(split)
        value = int(rng.integers(10))
        choices = bank.of_value(value)
        sample = int(choices[int(rng.integers(len(choices)))])
        angle = float(rng.uniform(-0.15, 0.15))
        return SceneObject(kind, colour, x, y, radius, angle, rgb, value, sample)
    turn = math.pi if kind == "star" else 0.3
    return SceneObject(kind, colour, x, y, radius, float(rng.uniform(-turn, turn)), rgb)


def _place(rng: np.random.Generator, radius: float, taken: list[SceneObject]) -> tuple[float, float] | None:
    """A free spot for a disc of `radius`, or None when none was found quickly."""
    for _ in range(40):
        x, y = rng.uniform(radius + 1.0, SIZE - radius - 1.0, size=2)
        if all(math.hypot(x - o.x, y - o.y) >= radius + o.radius + GAP for o in taken):
            return float(x), float(y)
    return None


def sample_scene(
    rng: np.random.Generator,
    split: str,
    min_objects: int = MIN_OBJECTS,
    max_objects: int = MAX_OBJECTS,
) -> Scene:
    """Decide what is where.

    Kinds and colours come from weights drawn per scene, so that several objects of one kind
    (counting) and lone ones (unique referents) both occur often.
    """
    count = int(rng.integers(min_objects, max_objects + 1))
    digit_share = float(rng.uniform(0.1, 0.5))
    kind_weights = np.append(rng.dirichlet([0.7] * len(SHAPES)) * (1 - digit_share), digit_share)
    colour_weights = rng.dirichlet([1.2] * len(COLOURS))
    colours = tuple(COLOURS)
    objects: list[SceneObject] = []
    for _ in range(count):
        kind = KINDS[int(rng.choice(len(KINDS), p=kind_weights))]
        colour = colours[int(rng.choice(len(colours), p=colour_weights))]
        radius = float(rng.uniform(10.0, 12.0) if kind == DIGIT else rng.uniform(7.0, 12.0))
        spot = _place(rng, radius, objects)
        if spot is not None:
            objects.append(sample_object(rng, split, kind, colour, *spot, radius))
    return Scene(split, tuple(objects), int(rng.integers(2**31)))


@lru_cache(maxsize=16)
def _interpolation(cells: int) -> npt.NDArray[np.float32]:
    """Matrix of linear interpolation from `cells + 1` knots to `SIZE` pixels; (SIZE, cells + 1)."""
    at = (np.arange(SIZE) + 0.5) / SIZE * cells
    low = np.minimum(at.astype(int), cells - 1)
    weights = np.zeros((SIZE, cells + 1), dtype=np.float32)
    weights[np.arange(SIZE), low] = 1 - (at - low)
    weights[np.arange(SIZE), low + 1] += at - low
    return weights


def _background(seed: int) -> npt.NDArray[np.float32]:
    """Greyish low-contrast texture of three scales; (SIZE, SIZE, 3), between 0 and 255."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(85, 165) + rng.uniform(-12, 12, size=3)
    canvas = np.broadcast_to(base.astype(np.float32), (SIZE, SIZE, 3)).copy()
    for cells, strength in ((3, 14.0), (int(rng.integers(8, 25)), 9.0)):
        knots = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
        weights = _interpolation(cells)
        canvas += (strength * (weights @ knots @ weights.T))[..., None]
    canvas += 3.0 * rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    return canvas


def _star_mask(
    u: npt.NDArray[np.float64], v: npt.NDArray[np.float64], radius: float, points: int, inner: float
) -> npt.NDArray[np.float64]:
    """Coverage of a star with `points` tips; `inner` is the radius of the dents over the tips'.

    Folding the angle into one half of one tip leaves a single straight edge to test.
    """
    sector = math.pi / points
    angle = np.abs((np.arctan2(v, u) + sector) % (2 * sector) - sector)
    r = np.hypot(u, v)
    x, y = r * np.cos(angle), r * np.sin(angle)
    ex, ey = radius * (inner * math.cos(sector) - 1.0), radius * inner * math.sin(sector)
    # Positive inside: the centre lies to the left of the edge from the tip to the dent.
    distance = (ex * y - ey * (x - radius)) / math.hypot(ex, ey)
    return np.clip(distance + 0.5, 0.0, 1.0)


def _digit_mask(
    u: npt.NDArray[np.float64], v: npt.NDArray[np.float64], radius: float, ink: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Coverage of a handwritten digit, bilinearly enlarged; `ink` is (8, 8)."""
    padded = np.pad(ink, 2)
    column = np.clip((u / radius + 1) * 4 + 1.5, 0, 10.999)
    row = np.clip((v / radius + 1) * 4 + 1.5, 0, 10.999)
    c, r = column.astype(int), row.astype(int)
    fc, fr = column - c, row - r
    top = padded[r, c] * (1 - fc) + padded[r, c + 1] * fc
    bottom = padded[r + 1, c] * (1 - fc) + padded[r + 1, c + 1] * fc
    mask: npt.NDArray[np.float64] = np.clip((top * (1 - fr) + bottom * fr) * 1.4 - 0.1, 0.0, 1.0)
    return mask


def _mask(
    item: SceneObject,
    split: str,
    xs: npt.NDArray[np.floating],
    ys: npt.NDArray[np.floating],
) -> npt.NDArray[np.float64]:
    """How much of each pixel the object covers; (H, W) of the window."""
    dx, dy = xs[None, :] - item.x, ys[:, None] - item.y
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    r = item.radius
    if item.kind == DIGIT:
        return _digit_mask(u, v, r, load_bank(split).images[item.sample])
    if item.kind == "circle":
        return np.clip(r - 1.0 - np.hypot(u, v) + 0.5, 0.0, 1.0)
    if item.kind == "cross":
        a, b = np.abs(u), np.abs(v)
        outside = np.maximum(np.minimum(a, b) - 0.3 * r, np.maximum(a, b) - 0.95 * r)
        return np.clip(0.5 - outside, 0.0, 1.0)
    if item.kind == "square":
        # The corners of a square are where a four-tipped star has its tips.
        return _star_mask((u + v) / math.sqrt(2), (v - u) / math.sqrt(2), 1.1 * r, 4, math.sqrt(0.5))
    if item.kind == "triangle":
        # Turned so that a tip points up, lowered so that the box is centred.
        return _star_mask(-(v - 0.2 * r), u, 1.15 * r, 3, 0.5)
    return _star_mask(-v, u, 1.1 * r, 5, 0.42)


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """Paint a scene; (SIZE, SIZE, 3)."""
    canvas = _background(scene.texture)
    for item in scene.objects:
        reach = item.radius * 1.2 + 2
        left, right = max(0, int(item.x - reach)), min(SIZE, int(item.x + reach) + 1)
        top, bottom = max(0, int(item.y - reach)), min(SIZE, int(item.y + reach) + 1)
        mask = _mask(item, scene.split, np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        alpha = mask[..., None].astype(np.float32)
        window = canvas[top:bottom, left:right]
        window += alpha * (np.array(item.rgb, dtype=np.float32) - window)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def to_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """A PIL picture of (SIZE, SIZE, 3) pixels."""
    return Image.fromarray(pixels)
