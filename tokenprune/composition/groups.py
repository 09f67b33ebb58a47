"""The axis `groups`: among whom the budget is shared out, in proportion to the number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.composition.options import Options
from tokenprune.composition.parts import Part, by_name
from tokenprune.errors import IncompatibleError
from tokenprune.view import View

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tokenprune.dual import Duplication


@dataclass(frozen=True, kw_only=True)
class Groups(Part):
    """A partition of the N tokens, the same for every unit of a view.

    Args:
        numbers: (rows, columns, frames, options) -> group of each token, (N,) int64; `None` is one group for all.
    """

    numbers: Callable[[int, int, int, Options], Tensor] | None

    def split(self, view: View, options: Options) -> Iterator[tuple[Tensor, int]]:
        """Members (M,) and quota of each group that gets a share of the budget.

        Raises:
            IncompatibleError: Tokens are missing already, so that the grid does not say where the others are.
        """
        import torch

        if self.numbers is None:
            yield torch.arange(view.tokens), view.keep
            return
        if view.tokens != view.original_tokens:
            raise IncompatibleError(
                f"groups `{self.name}` need all {view.original_tokens} tokens of a unit, {view.tokens} are left",
                hint="group at the first cut only",
            )
        rows, columns = view.grid()
        numbers = self.numbers(rows, columns, view.tokens // (rows * columns), options)
        sizes = torch.bincount(numbers)
        quotas = dual.split_budget(sizes.unsqueeze(0), view.keep, sizes)[0].tolist()
        for group, quota in enumerate(quotas):
            if quota:
                yield (numbers == group).nonzero()[:, 0], quota


@dataclass(frozen=True)
class Within:
    """A duplication among some of the tokens only.

    Args:
        whole: The duplication among all N.
        members: (B, M), the tokens that are here.
    """

    whole: Duplication
    members: Tensor

    @property
    def units(self) -> int:
        """B."""
        return self.whole.units

    @property
    def tokens(self) -> int:
        """M."""
        return self.members.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.whole.device

    def block(self, rows: Tensor | None, columns: Tensor) -> Tensor:
        """D[rows, columns] in the numbering of the members, (B, R, C)."""
        places = self.members if rows is None else self.members.gather(-1, rows)
        return self.whole.block(places, self.members.gather(-1, columns))

    def full(self) -> Tensor:
        """The whole matrix of the members, (B, M, M)."""
        return self.whole.block(self.members, self.members)


def _windows(rows: int, columns: int, frames: int, options: Options) -> Tensor:
    import torch

    side = options.window
    across, down = -(-columns // side), -(-rows // side)
    row, column = torch.arange(rows) // side, torch.arange(columns) // side
    one_frame = (row[:, None] * across + column[None, :]).reshape(-1)
    return (torch.arange(frames)[:, None] * (across * down) + one_frame).reshape(-1)


def _frames(rows: int, columns: int, frames: int, options: Options) -> Tensor:
    import torch

    return torch.arange(frames).repeat_interleave(rows * columns)


GROUPS = by_name(
    (
        Groups(name="image", meaning="all tokens of an image or a video together", term="", numbers=None),
        Groups(
            name="windows",
            meaning="windows of the token grid, each with its quota",
            term="in each window",
            needs=("geometry",),
            reads=("window",),
            numbers=_windows,
        ),
        Groups(
            name="frames",
            meaning="frames of a video, each with its quota (an image is one frame)",
            term="in each frame",
            needs=("geometry",),
            numbers=_frames,
        ),
    )
)
