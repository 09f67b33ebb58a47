"""Visual planes that some text models add to the first layers' outputs (DeepStack), for shortened sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.patch.methods import method_changed
from tokenprune.engine.state.prefill import Move
from tokenprune.engine.state.rows import Rows, gather_rows

_METHOD = "_deepstack_process"


def add_deepstack(
    text: nn.Module, present: Callable[[], tuple[Rows, Sequence[Move]] | None], undo: contextlib.ExitStack
) -> None:
    """Stand in a text model's own method that adds a plane to the visual tokens.

    Args:
        text: The text model; one without such a method is left alone.
        present: The rows of the running pass and what was merged or moved among them; `None` where nothing was cut.
        undo: Takes what gives the text model its own method back.
    """

    def adding(own: Callable[..., Any]) -> Callable[..., Any]:
        def add(hidden: Tensor, mask: Tensor, plane: Tensor) -> Any:
            """Add a plane (tokens, D) to the rows (B, S', D) of its tokens, merged and moved as these were."""
            shorter = present()
            if shorter is None:
                return own(hidden, mask, plane)
            rows, moves = shorter
            full = hidden.new_zeros(*mask.shape, hidden.shape[-1])
            full[mask.to(hidden.device)] = plane.to(hidden)
            for move in moves:
                move.apply(full)
            added = gather_rows(full, rows.slots.clamp(min=0))
            return hidden + added.masked_fill(~rows.valid.to(added.device)[..., None], 0.0)

        return add

    if hasattr(text, _METHOD):
        undo.enter_context(method_changed(text, _METHOD, adding))
