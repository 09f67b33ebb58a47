"""Visual planes that some text models add to the first layers' outputs (DeepStack), for shortened sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.chunk import Move
from tokenprune.engine.rows import Rows, gather_rows

_METHOD = "_deepstack_process"


class VisualPlanes:
    """Stands in a text model's own method that adds a plane to the visual tokens.

    Args:
        text: The text model; one without such a method is left alone.
        present: The rows of the running pass and what was merged or moved among them; `None` where nothing was cut.
    """

    def __init__(self, text: nn.Module, present: Callable[[], tuple[Rows, Sequence[Move]] | None]) -> None:
        self._text = text
        self._present = present
        self._own: Callable[..., Tensor] | None = getattr(text, _METHOD, None)
        if self._own is not None:
            object.__setattr__(text, _METHOD, self._add)

    def remove(self) -> None:
        """Give the text model its own method back."""
        if self._own is not None:
            object.__delattr__(self._text, _METHOD)
            self._own = None

    def _add(self, hidden: Tensor, mask: Tensor, plane: Tensor) -> Any:
        """Add a plane (tokens, D) to the rows (B, S', D) of its tokens, merged and moved as these were."""
        assert self._own is not None  # noqa: S101 - it stands in the model only then
        present = self._present()
        if present is None:
            return self._own(hidden, mask, plane)
        rows, moves = present
        full = hidden.new_zeros(*mask.shape, hidden.shape[-1])
        full[mask.to(hidden.device)] = plane.to(hidden)
        for move in moves:
            move.apply(full)
        added = gather_rows(full, rows.slots.clamp(min=0))
        return hidden + added.masked_fill(~rows.valid[..., None], 0.0)
