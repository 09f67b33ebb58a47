"""The test split is what its version says, on every machine and in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tasks.hashes import pixels_hash, video_hash, words_hash

WORDS = "60bb2a63b6142e7e85ac604f547d1cbb0c031ff0d3b1807c0d5503552e745dbc"
PIXELS = "df7b1516b3c0b7e19f5a6de27cddbce1adef51191e27b080b2391e8fca3f8c0c"
VIDEO = "504a4d20c5844b4882cd0f68caf59adb53da8252e1175d34a68709e868bf6abc"


def test_test_split_is_what_its_version_says() -> None:
    """A change here needs a new version of the task and a new evaluation of the model."""
    assert words_hash() == WORDS
    assert pixels_hash() == PIXELS
    assert video_hash() == VIDEO


def test_other_processes_see_the_same() -> None:
    code = (
        "from tests.tasks.hashes import words_hash, pixels_hash, video_hash;"
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
