"""The test split is what its version says, on every machine and in every process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np

from tokenprune.tasks.scenes.task import ScenesTask
from tokenprune.tasks.scenes.video import ScenesVideoTask

WORDS = "60bb2a63b6142e7e85ac604f547d1cbb0c031ff0d3b1807c0d5503552e745dbc"
PIXELS = "df7b1516b3c0b7e19f5a6de27cddbce1adef51191e27b080b2391e8fca3f8c0c"
VIDEO = "504a4d20c5844b4882cd0f68caf59adb53da8252e1175d34a68709e868bf6abc"


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


def test_test_split_is_what_its_version_says() -> None:
    """A change here needs a new version of the task and a new evaluation of the model."""
    assert words_hash() == WORDS
    assert pixels_hash() == PIXELS
    assert video_hash() == VIDEO


def test_other_processes_see_the_same() -> None:
    code = (
        "from tests.tasks.test_golden import words_hash, pixels_hash, video_hash;"
        "print(words_hash(), pixels_hash(), video_hash())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout.split() == [WORDS, PIXELS, VIDEO]
