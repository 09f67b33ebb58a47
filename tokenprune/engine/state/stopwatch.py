"""Measure the time that a pruner's views and decisions take, to tell the cost of pruning from its savings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stopwatch:
    """Intervals in which a pruner read its view and decided, and the engine removed rows.

    Args:
        mark: Returns a point in time: reads a clock, or records an event on the device without waiting.
        intervals: Begin and end of each interval, in order.
    """

    mark: Callable[[], Any] = time.perf_counter
    intervals: list[tuple[Any, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Record the interval of the block; a block that raises is not recorded."""
        begin = self.mark()
        yield
        self.intervals.append((begin, self.mark()))
