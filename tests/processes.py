"""What tests of killed and interrupted processes look at."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 240.0
"""Seconds that anything may take."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """True for a process that still runs (a dead one that nobody has waited for yet does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def heeding() -> None:
    """Before a program starts: let it hear Ctrl-C, also where a shell in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
