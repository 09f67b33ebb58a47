"""The task `scenes`: pictures from the generator, questions of seven families, exact match."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Collection
from typing import Final

import numpy as np

from tokenprune.errors import ConfigError
from tokenprune.tasks.base import Sample
from tokenprune.tasks.scenes.digits import SPLITS, load_bank
from tokenprune.tasks.scenes.generator import (
    MAX_OBJECTS,
    MIN_OBJECTS,
    Scene,
    SceneObject,
    render,
    sample_scene,
    to_image,
)
from tokenprune.tasks.scenes.questions import ANSWERS, FAMILIES, Question, ask

VERSION: Final = "scenes-1.0"
STREAMS: Final[dict[str, int]] = {"train": 101, "validation": 202, "test": 303}
"""First number of the seed of everything that belongs to a split."""
DEFAULT_SIZE: Final = 4200
MAX_ATTEMPTS: Final = 2000


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces, no article in front."""
    cleaned = text.lower().translate(str.maketrans("", "", string.punctuation))
    words = cleaned.split()
    if words and words[0] in {"a", "an", "the"}:
        words = words[1:]
    return " ".join(words)


def describe(item: SceneObject) -> dict[str, object]:
    """An object as plain values, for `Sample.facts`."""
    return {
        "kind": item.kind,
        "colour": item.colour,
        "value": item.value if item.value >= 0 else None,
        "box": item.box,
    }


def check_options(split: str, size: int, families: Collection[str], known: Collection[str]) -> None:
    """Check the options of a task of this generator.

    Raises:
        ConfigError: One of them is not allowed.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    unknown = sorted(set(families) - set(known))
    if unknown or not families:
        raise ConfigError(f"unknown families {unknown}: some of {', '.join(known)}")
    if size < 0:
        raise ConfigError(f"size is {size}: it must not be negative")


class ScenesTask:
    """Questions about generated pictures.

    Sample number i asks family `i mod 7`; within a family the answers take turns too, so every
    prefix of the task is balanced. Scenes are drawn until one allows the wanted question.

    Args:
        split: `train`, `validation` or `test`; each has its own seeds and its own handwriting.
        size: How many samples there are; any number works, the samples do not depend on it.
        families: Restrict the task to these families.
    """

    name = "scenes"
    version = VERSION
    max_new_tokens = 4

    def __init__(
        self,
        split: str = "test",
        size: int = DEFAULT_SIZE,
        families: tuple[str, ...] = FAMILIES,
    ) -> None:
        check_options(split, size, families, FAMILIES)
        self.split = split
        self.families = tuple(families)
        self._size = size

    def __len__(self) -> int:
        return self._size

    def question(self, index: int) -> tuple[Scene, Question]:
        """The scene and the question of one sample, without painting the scene."""
        if not 0 <= index < self._size:
            raise IndexError(f"sample {index} of a task of {self._size}")
        turn, place = divmod(index, len(self.families))
        family = self.families[place]
        answers = ANSWERS[family]
        answer = answers[turn % len(answers)]
        seed = [STREAMS[self.split], FAMILIES.index(family), turn]
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([*seed, attempt])
            scene = sample_scene(rng, self.split, MIN_OBJECTS, MAX_OBJECTS)
            question = ask(scene, family, answer, rng)
            if question is not None:
                return scene, question
        raise RuntimeError(f"no scene with {family} = {answer} in {MAX_ATTEMPTS} attempts")

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; the same on every machine."""
        scene, question = self.question(index)
        return Sample(
            id=f"{self.version}/{self.split}/{question.family}/{index // len(self.families)}",
            images=(to_image(render(scene)),),
            question=question.text,
            answer=question.answer,
            family=question.family,
            facts={
                "objects": tuple(describe(item) for item in scene.objects),
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
            "stream": STREAMS[self.split],
            "families": list(self.families),
            "digits": load_bank(self.split).digest(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
