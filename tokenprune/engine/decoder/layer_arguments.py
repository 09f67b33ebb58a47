"""Shorten the arguments of a decoder layer that run along the sequence, and renumber rotary embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.patch.attention_probe import OWN
from tokenprune.engine.state.rows import gather_embeddings
from tokenprune.errors import IncompatibleError


def shorten_arguments(arguments: Mapping[str, Any], length: int, index: Tensor) -> dict[str, Any]:
    """Arguments in which every tensor along the sequence, (B or 1, S, ...), has the rows `index` (B, S') only."""
    return {
        name: gather_embeddings(value, index) if name not in OWN and _along(value, length) else value
        for name, value in arguments.items()
    }


def first_rows(arguments: Mapping[str, Any], length: int, count: int) -> dict[str, Any]:
    """Arguments in which every tensor along the sequence has the first rows of the first sample only."""
    return {name: value[:1, :count] if _along(value, length) else value for name, value in arguments.items()}


def first_sample(embeddings: Any) -> Any:
    """Position embeddings of the first sample: a tensor (B or 1, S, ...) or a tuple of such."""
    return tuple(part[:1] for part in embeddings) if isinstance(embeddings, tuple) else embeddings[:1]


def replace_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The text model's output with its last hidden states changed."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.last_hidden_state = change(output.last_hidden_state)
    return output


def _along(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[1] == length


class RotaryCalls:
    """Records the calls of a rotary embedding in one forward pass, to repeat them with other positions.

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

    def clear(self) -> None:
        """Forget the calls of the last forward pass."""
        self._calls.clear()

    def at(self, given: Any, hidden: Tensor, position_ids: Tensor) -> Any:
        """The embeddings `given` to a layer, computed again for other position ids (B, S').

        Raises:
            IncompatibleError: They are not an output of the rotary embedding.
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
            f"the position embeddings of the layers are not an output of `{type(self._rotary).__name__}`, so "
            "positions cannot be renumbered",
            hint="use `positions='keep'`",
        )


def _first(embeddings: Any) -> Tensor:
    found: Tensor = embeddings[0] if isinstance(embeddings, tuple) else embeddings
    return found


def _is_positions(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and not value.is_floating_point()
