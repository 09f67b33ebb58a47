"""What the methods for videos share: asked shares, sets of cells with a quota, and numbers that break ties of density.

Letters as in `tokenprune.dual.video`: F frames of P cells, N = F P tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Kept, State, Stop

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual.video import Span

#: Published scale of the random numbers that are added to densities.
_SCALE = 1e-6


def asked_share(stop: Stop, tokens: int) -> float:
    """The share of the tokens that was asked for, not rounded to whole tokens."""
    return stop.budget.ratio if stop.budget.ratio is not None else min(1.0, (stop.budget.tokens or 0) / tokens)


def split_by_size(sizes: Sequence[int], keep: int) -> list[int]:
    """Share K rows out over sets in proportion to their sizes, none above its size.

    Args:
        sizes: Cells of each set, together at least K.
        keep: K.
    """
    import torch

    room = torch.tensor(sizes)
    quotas: list[int] = dual.split_budget(room[None], keep, room)[0].tolist()
    return quotas


@dataclass(frozen=True, slots=True)
class CellSet:
    """Cells that share a quota: the static ones of a window of frames, or the others of one frame.

    Args:
        span: First and last frame for which each cell stands.
        cells: Numbers of the cells, (n,).
        static: Whether the cells stand still over a window.
    """

    span: Span
    cells: Tensor
    static: bool

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.cells.numel()

    def means(self, video: Tensor) -> Tensor:
        """Mean over the frames of each cell, (F, P, D) to (n, D)."""
        return video[self.span[0] : self.span[1] + 1, self.cells].mean(dim=0)

    def places(self, cells: int) -> Tensor:
        """Tokens of the set by frame, (f, n), where a frame has P cells."""
        import torch

        first, last = self.span
        return self.cells + torch.arange(first, last + 1, device=self.cells.device)[:, None] * cells


def emitted_sets(
    sets: Sequence[CellSet], rows: Sequence[tuple[Tensor, Tensor]], video: tuple[int, int], *, raster: bool
) -> Kept:
    """The rows of one video out of what was made of its sets; a row stands at its cell in its first frame.

    Args:
        sets: The sets, distinct.
        rows: For each the cells at which its rows stand, as positions in the set, (q,), and their weights over its
            cells, (q, n).
        video: F and P.
        raster: Emit in raster order, else set by set.
    """
    import torch

    frames, cells = video
    anchors, merges, labels = [], [], []
    for entry, (chosen, weights) in zip(sets, rows, strict=True):
        places = entry.places(cells)
        merge = weights.new_zeros(chosen.numel(), frames * cells)
        merge[:, places.flatten()] = (weights / len(places)).repeat(1, len(places))
        anchors.append(places[0, chosen])
        merges.append(merge)
        labels += ["static" if entry.static else "dynamic"] * chosen.numel()
    anchor = torch.cat(anchors)
    order = anchor.argsort() if raster else torch.arange(anchor.numel(), device=anchor.device)
    return Kept(anchor[order], torch.cat(merges)[order], labels=tuple(labels[place] for place in order.tolist()))


class DensityNoise:
    """Uniform numbers for one unit, handed out in the order in which clusterings ask for them.

    Published implementations add 1e-6 times a random number to densities. Here ties go to the lower index; a caller
    who wants to reproduce a published run puts its numbers, (B, any), into `state["density_noise"]`.
    """

    def __init__(self, state: State, unit: int) -> None:
        given: Tensor | None = state.get("density_noise")
        self._left = None if given is None else given[unit]

    def take(self, sets: int, tokens: int, like: Tensor) -> Tensor | None:
        """The next numbers, scaled, (sets, tokens); `None` where a caller gave none.

        Raises:
            ConfigError: The caller gave too few.
        """
        if self._left is None:
            return None
        count = sets * tokens
        if self._left.numel() < count:
            raise ConfigError(
                f"`density_noise` has {self._left.numel()} numbers left, {count} are needed",
                hint="give one number per clustered token, in the order of the clusterings",
            )
        taken, self._left = self._left[:count], self._left[count:]
        return _SCALE * taken.to(like).view(sets, tokens)
