"""When the views and decisions of a session begin and end: what choosing costs, apart from what it saves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stopwatch:
    """Stretches of time in which a pruner looked and decided, with what the engine did to take rows out.

    Args:
        mark: Notes one moment: reads a clock, or records an event on the device, and waits for nothing.
        stretches: Begin and end of each, in order.
    """

    mark: Callable[[], Any] = time.perf_counter
    stretches: list[tuple[Any, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Note the stretch that the block takes; one that raises is none."""
        begin = self.mark()
        yield
        self.stretches.append((begin, self.mark()))
