"""Digests of words, pictures and videos of the shipped tasks."""

from __future__ import annotations

import hashlib

import numpy as np

from tokenprune.tasks.scenes.task import ScenesTask
from tokenprune.tasks.scenes.video import ScenesVideoTask


def words_hash() -> str:
    """Hash of the first 210 questions and answers of the test split."""
    task = ScenesTask()
    asked = [task.question(index)[1] for index in range(210)]
    return hashlib.sha256("|".join(f"{q.text}={q.answer}" for q in asked).encode()).hexdigest()


def pixels_hash() -> str:
    """Hash of the first 14 pictures of the test split."""
    task = ScenesTask()
    pictures = [np.asarray(task[index].images[0]).tobytes() for index in range(14)]
    return hashlib.sha256(b"".join(pictures)).hexdigest()


def video_hash() -> str:
    """Hash of the first 10 videos and their questions."""
    task = ScenesVideoTask()
    state = hashlib.sha256()
    for index in range(10):
        sample = task[index]
        state.update(f"{sample.question}={sample.answer}".encode())
        for image in sample.images:
            state.update(np.asarray(image).tobytes())
    return state.hexdigest()
