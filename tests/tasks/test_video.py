"""Videos: the same generator over time, questions verified frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.solving import solve
from tokenprune.tasks.base import Task
from tokenprune.tasks.scenes.generator import SIZE, SceneObject
from tokenprune.tasks.scenes.task import ScenesTask, describe
from tokenprune.tasks.scenes.video import (
    FRAMES,
    MOMENTS,
    VIDEO_ANSWERS,
    VIDEO_FAMILIES,
    Film,
    ScenesVideoTask,
    sample_film,
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**31))
def test_objects_stay_inside_and_apart_in_every_frame(seed: int) -> None:
    film = sample_film(np.random.default_rng(seed), "train")
    assert film == sample_film(np.random.default_rng(seed), "train")
    for frame in range(FRAMES):
        objects = film.scene(frame).objects
        for number, item in enumerate(objects):
            assert item.box[0] >= 0
            assert item.box[2] <= SIZE
            assert item.box[1] >= 0
            assert item.box[3] <= SIZE
            for other in objects[number + 1 :]:
                apart = np.hypot(item.x - other.x, item.y - other.y)
                assert apart >= item.radius + other.radius


def _seen(film: Film, colour: str, kind: str) -> Sequence[SceneObject | None]:
    """The only object of that name in every frame, None where it is missing."""
    track: list[SceneObject | None] = []
    for frame in range(FRAMES):
        found = [o for o in film.scene(frame).objects if (o.colour, o.kind) == (colour, kind)]
        assert len(found) <= 1
        track.append(found[0] if found else None)
    return track


def _solve_film(film: Film, question: str) -> str:
    words = question.split()
    if words[-2] == "frame":
        *body, _in, _the, moment, _frame, _mark = words
        scene = film.scene(MOMENTS.index(moment))
        return solve(" ".join([*body, "?"]), [describe(item) for item in scene.objects])
    colour, kind = [words[i] for i in ((2, 3) if words[0] == "did" else (4, 5))]
    if words[0] == "which":
        colour, kind = words[4], words[5]
    track = _seen(film, colour, kind)
    if words[1] == "changed":
        assert (track[0] is None) != (track[-1] is None)
        return "appeared" if track[0] is None else "vanished"
    first, last = track[0], track[-1]
    assert first is not None
    assert last is not None
    dx, dy = last.x - first.x, last.y - first.y
    if words[0] == "did":
        return "yes" if max(abs(dx), abs(dy)) > 1 else "no"
    assert min(abs(dx), abs(dy)) == 0
    assert max(abs(dx), abs(dy)) >= 24
    if dx:
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_follow_from_the_frames(split: str) -> None:
    task = ScenesVideoTask(split, size=150)
    for index in range(len(task)):
        film, question, moments = task.question(index)
        assert _solve_film(film, question.text) == question.answer
        assert question.answer in VIDEO_ANSWERS[question.family]
        assert moments
        assert set(moments) <= set(range(FRAMES))


def test_samples_are_videos_and_frames_differ_where_something_happens() -> None:
    task = ScenesVideoTask(size=20)
    for index in range(len(task)):
        sample = task[index]
        assert sample.video
        assert len(sample.images) == FRAMES
        first, last = (np.asarray(sample.images[i]).astype(int) for i in (0, -1))
        if sample.family in {"direction", "change"}:
            assert np.abs(first - last).max() > 40
        # Most of a picture is the same background in every frame.
        assert (first == last).all(-1).mean() > 0.6
    repeat = ScenesVideoTask(size=20)[7]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(task[7].images, repeat.images, strict=True))


def test_task_contract() -> None:
    task = ScenesVideoTask()
    assert isinstance(task, Task)
    assert task.families == VIDEO_FAMILIES
    assert task.version == "scenes-video-1.0"
    assert task.digest() != ScenesVideoTask("train").digest()
    assert task.digest() != ScenesTask().digest()
    sample = task[0]
    assert task.score(sample.answer.upper(), sample) == 1.0
    with pytest.raises(IndexError):
        task[len(task)]
    with pytest.raises(ValueError, match="unknown split"):
        ScenesVideoTask("dev")
