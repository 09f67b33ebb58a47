"""Mark the timestamps of a `generate` call: where the vision side begins and ends, and every forward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from tokenprune.engine.patch.methods import ENCODING, method_changed
from tokenprune.families.family import Parts

MarkT = TypeVar("MarkT")


@dataclass
class Timestamps(Generic[MarkT]):
    """When the parts of a run began and ended, in the order of the run.

    Args:
        encoder: Begin and end of each stretch of vision tower and projector.
        forward: Begin and end of each forward pass of the whole model: the prefill, then one per decoding step.
    """

    encoder: list[tuple[MarkT, MarkT]] = field(default_factory=list)
    forward: list[tuple[MarkT, MarkT]] = field(default_factory=list)

    def clear(self) -> None:
        """A new run begins."""
        self.encoder.clear()
        self.forward.clear()


@contextlib.contextmanager
def timestamps_of(parts: Parts, mark: Callable[[], MarkT]) -> Iterator[Timestamps[MarkT]]:
    """Note the timestamps of every run inside the block; the model is as it was afterwards.

    Args:
        parts: The model, stock or inside `pruned`.
        mark: Notes one moment: reads a clock, or records an event on the device.
    """
    found: Timestamps[MarkT] = Timestamps()
    began: list[MarkT] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        began.append(mark())

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.forward.append((began.pop(), mark()))

    with contextlib.ExitStack() as stack:
        for name in ENCODING:
            if callable(getattr(parts.base, name, None)):
                stack.enter_context(method_changed(parts.base, name, lambda own: _marked(own, mark, found.encoder)))
        stack.callback(parts.model.register_forward_pre_hook(before).remove)
        stack.callback(parts.model.register_forward_hook(after).remove)
        yield found


def _marked(
    own: Callable[..., Any], mark: Callable[[], MarkT], stretches: list[tuple[MarkT, MarkT]]
) -> Callable[..., Any]:
    @functools.wraps(own)  # `generate` looks at the signature
    def run(*args: Any, **kwargs: Any) -> Any:
        begin = mark()
        made = own(*args, **kwargs)
        stretches.append((begin, mark()))
        return made

    return run
