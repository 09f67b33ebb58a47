"""DeepStack on shortened sequences: encoder features that some text models add after their first layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.patch.methods import method_changed
from tokenprune.engine.state.prefill import RowUpdate
from tokenprune.engine.state.rows import Rows, gather_rows

_METHOD = "_deepstack_process"


def add_deepstack(
    text: nn.Module, cut_rows: Callable[[], tuple[Rows, Sequence[RowUpdate]] | None], undo: contextlib.ExitStack
) -> None:
    """Replace the method of a text model that adds encoder features to the visual tokens.

    Args:
        text: The text model; a model without DeepStack is left alone.
        cut_rows: Returns the rows of the present pass and the changes made to them; `None` if nothing was cut.
        undo: Restores the method.
    """

    def adding(own: Callable[..., Any]) -> Callable[..., Any]:
        def add(hidden: Tensor, mask: Tensor, plane: Tensor) -> Any:
            """Add features (tokens, D) to their rows (B, S', D), merged and moved in the same way as the rows."""
            shorter = cut_rows()
            if shorter is None:
                return own(hidden, mask, plane)
            rows, row_updates = shorter
            full = hidden.new_zeros(*mask.shape, hidden.shape[-1])
            full[mask.to(hidden.device)] = plane.to(hidden)
            for move in row_updates:
                move.apply(full)
            added = gather_rows(full, rows.slots.clamp(min=0))
            return hidden + added.masked_fill(~rows.valid.to(added.device)[..., None], 0.0)

        return add

    if hasattr(text, _METHOD):
        undo.enter_context(method_changed(text, _METHOD, adding))
