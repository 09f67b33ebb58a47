"""Questions about a scene, each with exactly one right answer.

Every family knows its answers (`ANSWERS`) and how to ask for a wanted one: `ask` returns None where
the scene does not allow it, so that balance is decided by the caller and never by luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from tokenprune.tasks.scenes.generator import (
    COLOURS,
    DIGIT,
    KINDS,
    SHAPES,
    SIZE,
    Scene,
    SceneObject,
)

T = TypeVar("T")

NUMBERS: Final = ("zero", "one", "two", "three", "four")
PLACES: Final = ("top left", "top right", "bottom left", "bottom right")
PLURALS: Final[dict[str, str]] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "digit": "digits",
}
MARGIN: Final = 10.0
"""Nobody asks where an object is whose centre is closer than this to a border of two quarters."""

ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "existence": ("yes", "no"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "counting": NUMBERS,
    "digit": tuple(str(value) for value in range(10)),
    "position": PLACES,
    "comparison": ("yes", "no"),
}
"""Every answer of every family."""
FAMILIES: Final = tuple(ANSWERS)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the objects that decide it."""

    family: str
    text: str
    answer: str
    referents: tuple[SceneObject, ...]


def _pick(rng: np.random.Generator, options: list[T]) -> T | None:
    return options[int(rng.integers(len(options)))] if options else None


def _place_of(item: SceneObject) -> str | None:
    """The quarter of the picture an object is in; None when it is too close to a border."""
    half = SIZE / 2
    if min(abs(item.x - half), abs(item.y - half)) < MARGIN:
        return None
    return f"{'top' if item.y < half else 'bottom'} {'left' if item.x < half else 'right'}"


def _existence(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    shapes = [o for o in scene.objects if o.kind != DIGIT]
    present = {(o.colour, o.kind) for o in shapes}
    if answer == "yes":
        chosen = _pick(rng, sorted(present))
    else:
        colours = sorted({o.colour for o in scene.objects})
        kinds = sorted({o.kind for o in shapes})
        absent = [(c, k) for c in colours for k in kinds if (c, k) not in present]
        # One in five is easy: the other four need colour and shape to be bound to each other.
        if not absent or rng.random() < 0.2:
            absent = [(c, k) for c in COLOURS for k in SHAPES if (c, k) not in present]
        chosen = _pick(rng, absent)
    if chosen is None:
        return None
    colour, kind = chosen
    referents = tuple(o for o in shapes if (o.colour, o.kind) == chosen)
    return Question("existence", f"is there a {colour} {kind} ?", answer, referents)


def _colour(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    kinds = Counter(o.kind for o in scene.objects)
    lone = [o for o in scene.objects if kinds[o.kind] == 1 and o.colour == answer]
    item = _pick(rng, lone)
    if item is None:
        return None
    return Question("colour", f"what color is the {item.kind} ?", answer, (item,))


def _shape(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    colours = Counter(o.colour for o in scene.objects)
    lone = [o for o in scene.objects if colours[o.colour] == 1 and o.kind == answer]
    item = _pick(rng, lone)
    if item is None:
        return None
    return Question("shape", f"what shape is {item.colour} ?", answer, (item,))


def _counting(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    wanted = NUMBERS.index(answer)
    kinds = Counter(o.kind for o in scene.objects)
    kind = _pick(rng, [k for k in KINDS if kinds[k] == wanted])
    if kind is None:
        return None
    referents = tuple(o for o in scene.objects if o.kind == kind)
    return Question("counting", f"how many {PLURALS[kind]} ?", answer, referents)


def _digit(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    digits = [o for o in scene.objects if o.kind == DIGIT]
    colours = Counter(o.colour for o in digits)
    item = _pick(rng, [o for o in digits if colours[o.colour] == 1 and o.value == int(answer)])
    if item is None:
        return None
    return Question("digit", f"which digit is {item.colour} ?", answer, (item,))


def _position(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    names = Counter((o.colour, o.kind) for o in scene.objects)
    lone = [o for o in scene.objects if names[o.colour, o.kind] == 1 and _place_of(o) == answer]
    item = _pick(rng, lone)
    if item is None:
        return None
    return Question("position", f"where is the {item.colour} {item.kind} ?", answer, (item,))


def _comparison(scene: Scene, rng: np.random.Generator, answer: str) -> Question | None:
    kinds = Counter(o.kind for o in scene.objects)
    # Two kinds that are both there, or the question would be one of existence.
    pairs = [(a, b) for a in KINDS for b in KINDS if kinds[a] > kinds[b] > 0]
    if not pairs:
        pairs = [(a, b) for a in KINDS for b in KINDS if kinds[a] > kinds[b]]
    pair = _pick(rng, pairs)
    if pair is None:
        return None
    first, second = pair if answer == "yes" else pair[::-1]
    referents = tuple(o for o in scene.objects if o.kind in pair)
    text = f"are there more {PLURALS[first]} than {PLURALS[second]} ?"
    return Question("comparison", text, answer, referents)


_ASKERS: Final[Mapping[str, Callable[[Scene, np.random.Generator, str], Question | None]]] = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "counting": _counting,
    "digit": _digit,
    "position": _position,
    "comparison": _comparison,
}


def ask(scene: Scene, family: str, answer: str, rng: np.random.Generator) -> Question | None:
    """A question of `family` about `scene` whose answer is `answer`.

    Args:
        scene: The scene asked about.
        family: One of `FAMILIES`.
        answer: One of `ANSWERS[family]`.
        rng: Chooses among the questions that fit.

    Returns:
        The question, or None when the scene has no question of this family with this answer.
    """
    return _ASKERS[family](scene, rng, answer)
