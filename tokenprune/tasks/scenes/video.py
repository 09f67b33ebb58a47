"""The task `scenes-video`: a few frames, questions about one moment and about change.

One or two objects move, one may appear or vanish; everything else, the background included, stays.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from tokenprune.tasks.base import Sample
from tokenprune.tasks.scenes.digits import load_bank
from tokenprune.tasks.scenes.generator import (
    GAP,
    SIZE,
    Scene,
    SceneObject,
    render,
    sample_scene,
    to_image,
)
from tokenprune.tasks.scenes.questions import ANSWERS, Question, ask
from tokenprune.tasks.scenes.task import STREAMS, check_options, describe, normalise

VERSION: Final = "scenes-video-1.0"
VIDEO_STREAM: Final = 1_000
"""Added to the stream of the split, so that no video repeats a picture of `scenes`."""
FRAMES: Final = 4
MOMENTS: Final = ("first", "second", "third", "last")
WAYS: Final[Mapping[str, tuple[int, int]]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
SHORTEST_WAY: Final = 24.0
LONGEST_WAY: Final = 60.0
VIDEO_ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "moment-position": ANSWERS["position"],
    "moment-counting": ("zero", "one", "two", "three"),
    "movement": ("yes", "no"),
    "direction": tuple(WAYS),
    "change": ("appeared", "vanished"),
}
VIDEO_FAMILIES: Final = tuple(VIDEO_ANSWERS)
MAX_ATTEMPTS: Final = 2000


@dataclass(frozen=True, slots=True)
class Actor:
    """An object, where it goes and when it is there.

    Attributes:
        item: The object in the first frame.
        way: Where it moves; empty when it stays.
        distance: How far it is in the last frame, in pixels.
        enters: First frame that shows it.
        leaves: First frame that does not show it any more.
    """

    item: SceneObject
    way: str = ""
    distance: float = 0.0
    enters: int = 0
    leaves: int = FRAMES

    def at(self, frame: int) -> SceneObject | None:
        """The object in one frame, or None when it is not there."""
        if not self.enters <= frame < self.leaves:
            return None
        dx, dy = WAYS[self.way] if self.way else (0, 0)
        step = self.distance * frame / (FRAMES - 1)
        return self.item.moved(dx * step, dy * step)


@dataclass(frozen=True, slots=True)
class Film:
    """A video before it is painted."""

    split: str
    actors: tuple[Actor, ...]
    texture: int

    def scene(self, frame: int) -> Scene:
        """What one frame shows."""
        present = tuple(item for actor in self.actors if (item := actor.at(frame)) is not None)
        return Scene(self.split, present, self.texture)


def _clear(track: Actor, others: list[Actor]) -> bool:
    """Whether an actor stays inside the picture and away from the others in every frame."""
    for frame in range(FRAMES):
        item = track.at(frame)
        if item is None:
            continue
        r = item.radius
        if not (r < item.x < SIZE - r and r < item.y < SIZE - r):
            return False
        for other in others:
            # Where it was or will be counts too, so that nobody reappears on top of another.
            there = other.at(min(max(frame, other.enters), other.leaves - 1))
            if there is None:
                continue
            if math.hypot(item.x - there.x, item.y - there.y) < r + there.radius + GAP:
                return False
    return True


def sample_film(rng: np.random.Generator, split: str) -> Film:
    """Decide what is where and what happens to it."""
    start = sample_scene(rng, split, 3, 6)
    actors = [Actor(item) for item in start.objects]
    ways = tuple(WAYS)
    for number in rng.permutation(len(actors))[: int(rng.integers(1, 3))]:
        others = actors[:number] + actors[number + 1 :]
        for _ in range(12):
            way = ways[int(rng.integers(len(ways)))]
            distance = float(rng.uniform(SHORTEST_WAY, LONGEST_WAY))
            track = Actor(actors[number].item, way, distance)
            if _clear(track, others):
                actors[number] = track
                break
    still = [number for number, actor in enumerate(actors) if not actor.way]
    if still and rng.random() < 0.7:
        number = still[int(rng.integers(len(still)))]
        cut = int(rng.integers(1, FRAMES))
        span = (cut, FRAMES) if rng.random() < 0.5 else (0, cut)
        actors[number] = Actor(actors[number].item, "", 0.0, *span)
    return Film(split, tuple(actors), start.texture)


def _lone(film: Film, fits: Callable[[Actor], bool]) -> list[Actor]:
    """Actors that fit and whose colour and kind together name nobody else in the whole film."""
    names = Counter((actor.item.colour, actor.item.kind) for actor in film.actors)
    return [a for a in film.actors if names[a.item.colour, a.item.kind] == 1 and fits(a)]


def _moment(film: Film, family: str, answer: str, rng: np.random.Generator) -> tuple[Question, tuple[int, ...]] | None:
    """A question of the picture task about one frame."""
    frame = int(rng.integers(FRAMES))
    inner = ask(film.scene(frame), family.removeprefix("moment-"), answer, rng)
    if inner is None:
        return None
    body = inner.text.removesuffix(" ?")
    text = f"{body} in the {MOMENTS[frame]} frame ?"
    return Question(family, text, answer, inner.referents), (frame,)


def ask_film(film: Film, family: str, answer: str, rng: np.random.Generator) -> tuple[Question, tuple[int, ...]] | None:
    """A question of `family` with this `answer` and the frames that decide it, or None."""
    if family.startswith("moment-"):
        return _moment(film, family, answer, rng)
    if family == "movement":
        moves = answer == "yes"
        options = _lone(film, lambda a: bool(a.way) == moves and a.leaves - a.enters == FRAMES)
        text = "did the {} move ?"
    elif family == "direction":
        options = _lone(film, lambda a: a.way == answer)
        text = "which way did the {} move ?"
    else:
        late = answer == "appeared"
        options = _lone(film, lambda a: a.enters > 0 if late else a.leaves < FRAMES)
        text = "what changed with the {} ?"
    if not options:
        return None
    actor = options[int(rng.integers(len(options)))]
    name = f"{actor.item.colour} {actor.item.kind}"
    referents = tuple(item for f in range(FRAMES) if (item := actor.at(f)) is not None)
    return Question(family, text.format(name), answer, referents), tuple(range(FRAMES))


class ScenesVideoTask:
    """Questions about generated videos of four frames; families and answers take turns.

    Args:
        split: `train`, `validation` or `test`.
        size: How many samples there are.
        families: Restrict the task to these families.
    """

    name = "scenes-video"
    version = VERSION
    max_new_tokens = 4

    def __init__(
        self,
        split: str = "test",
        size: int = 2000,
        families: tuple[str, ...] = VIDEO_FAMILIES,
    ) -> None:
        check_options(split, size, families, VIDEO_FAMILIES)
        self.split = split
        self.families = tuple(families)
        self._size = size

    def __len__(self) -> int:
        return self._size

    def question(self, index: int) -> tuple[Film, Question, tuple[int, ...]]:
        """The film, the question and the frames that decide it, without painting anything."""
        if not 0 <= index < self._size:
            raise IndexError(f"sample {index} of a task of {self._size}")
        turn, place = divmod(index, len(self.families))
        family = self.families[place]
        answers = VIDEO_ANSWERS[family]
        seed = [STREAMS[self.split] + VIDEO_STREAM, VIDEO_FAMILIES.index(family), turn]
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([*seed, attempt])
            film = sample_film(rng, self.split)
            asked = ask_film(film, family, answers[turn % len(answers)], rng)
            if asked is not None:
                return film, *asked
        raise RuntimeError(f"no film for {family} in {MAX_ATTEMPTS} attempts")

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; the same on every machine."""
        film, question, moments = self.question(index)
        frames: tuple[Image.Image, ...] = tuple(to_image(render(film.scene(frame))) for frame in range(FRAMES))
        return Sample(
            id=f"{self.version}/{self.split}/{question.family}/{index // len(self.families)}",
            images=frames,
            question=question.text,
            answer=question.answer,
            family=question.family,
            video=True,
            facts={
                "frames": moments,
                "referents": tuple(describe(item) for item in question.referents),
                "boxes": tuple(item.box for item in question.referents),
            },
        )

    def score(self, prediction: str, sample: Sample) -> float:
        """1 where the answers are equal after normalisation, otherwise 0."""
        return float(normalise(prediction) == normalise(sample.answer))

    def digest(self) -> str:
        """Hash of version, split, families and handwriting."""
        facts = {
            "version": self.version,
            "split": self.split,
            "stream": STREAMS[self.split] + VIDEO_STREAM,
            "families": list(self.families),
            "digits": load_bank(self.split).digest(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
