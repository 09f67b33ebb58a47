"""What a crew is and says: it hires workers and carries messages between them and the dispatcher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenprune.sweep.messages import Message, Order


class Crew(Protocol):
    """Hires workers and carries messages; a worker has at most one order at a time."""

    def slots(self) -> Sequence[str]:
        """Where workers may run, one at a time each: the devices, usually."""
        ...

    def place(self, slot: str) -> str:
        """What workers of several slots share, so that they would be in each other's measurements."""
        ...

    def hire(self, slot: str) -> str:
        """Start a worker and return its name, which no other worker ever had."""
        ...

    def give(self, worker: str, order: Order) -> None:
        """Hand an order to a ready worker that has none; never fails (`listen` tells of a dead worker)."""
        ...

    def listen(self) -> Iterable[Message]:
        """Wait until something happened, or for a moment; what happened, in order."""
        ...

    def dismiss(self) -> None:
        """Stop all workers and wait until they are gone."""
        ...
