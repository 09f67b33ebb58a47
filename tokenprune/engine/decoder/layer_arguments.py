"""Arguments of a decoder layer's call: those along the sequence, and what a rotary embedding makes of positions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.state.rows import gather_embeddings
from tokenprune.errors import IncompatibleError
from tokenprune.families.supported import CACHE_NAMES

#: What the engine gives to a layer itself.
_OWN = ("hidden_states", "attention_mask", "position_embeddings", "position_ids", *CACHE_NAMES)


def shortened(arguments: Mapping[str, Any], length: int, index: Tensor) -> dict[str, Any]:
    """Arguments of which those along the sequence, (B or 1, S, ...), hold rows `index` (B, S') only."""
    return {
        name: gather_embeddings(value, index) if name not in _OWN and _along(value, length) else value
        for name, value in arguments.items()
    }


def first_rows(arguments: Mapping[str, Any], length: int, count: int) -> dict[str, Any]:
    """Arguments of which those along the sequence hold the first rows of the first sample only."""
    return {name: value[:1, :count] if _along(value, length) else value for name, value in arguments.items()}


def others(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a layer needs beside states, mask, positions and cache; containers are copied."""
    return {
        name: copy.copy(value) if isinstance(value, dict) else value
        for name, value in arguments.items()
        if name not in _OWN
    }


def _along(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[1] == length


class RotaryCalls:
    """Remembers how the position embeddings of a pass were made, to make them for other positions.

    Args:
        rotary: The rotary embedding of the text model.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hook."""

        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._calls.append((args, kwargs, output))

        undo.callback(self._rotary.register_forward_hook(remember, with_kwargs=True).remove)

    def forget(self) -> None:
        """A new pass begins."""
        self._calls.clear()

    def at(self, given: Any, hidden: Tensor, position_ids: Tensor) -> Any:
        """The embeddings `given` to a layer, for other position ids (B, S').

        Raises:
            IncompatibleError: It is not known how they were made.
        """
        for args, kwargs, output in self._calls:
            if output is given:
                moved = [position_ids.to(value.device) if _is_positions(value) else value for value in args]
                named = {
                    name: position_ids.to(value.device) if _is_positions(value) else value
                    for name, value in kwargs.items()
                }
                return self._rotary.forward(hidden.to(_first(given).device), *moved[1:], **named)
        raise IncompatibleError(
            f"the position embeddings of the layers do not come from `{type(self._rotary).__name__}` as they are, so "
            "positions cannot be renumbered",
            hint="use `positions='keep'`",
        )


def _first(embeddings: Any) -> Tensor:
    found: Tensor = embeddings[0] if isinstance(embeddings, tuple) else embeddings
    return found


def _is_positions(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and not value.is_floating_point()
