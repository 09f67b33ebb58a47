"""Videos: the same cell in other frames, and frames grouped into segments, runs and windows.

Letters as in `tokenprune.pruner`; F frames of P cells each, tokens frame by frame (N = F P).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.dual.selection.groups import rank_in_group
from tokenprune.dual.view import l2_normalize
from tokenprune.errors import IncompatibleError

Span = tuple[int, int]
"""First and last frame, both included."""


def by_frame(rows: Tensor, frames: int) -> Tensor:
    """Split the token axis by frames: (B, N) or (B, N, D) to (B, F, P) or (B, F, P, D), in float32.

    Raises:
        IncompatibleError: The tokens do not make F equal frames.
    """
    tokens = rows.shape[1]
    if frames < 1 or tokens % frames:
        raise IncompatibleError(
            f"{tokens} visual tokens do not make {frames} equal frames",
            hint="methods for videos cut before anything else has, while every frame is whole",
        )
    return rows.float().reshape(rows.shape[0], frames, tokens // frames, *rows.shape[2:])


def cell_cosine(cells: Tensor, reference: Sequence[int]) -> Tensor:
    """Cosine of every cell with the same cell of its frame's reference frame, (B, F, P).

    Args:
        cells: (B, F, P, D).
        reference: The frame that each frame is compared with; a frame's own number gives 1.
    """
    directions = l2_normalize(cells)
    others = directions[:, torch.as_tensor(reference, device=cells.device)]
    cosine = (directions * others).sum(dim=-1)
    own = torch.tensor([frame == other for frame, other in enumerate(reference)], device=cells.device)
    return cosine.masked_fill(own[:, None], 1.0)


def neighbour_cosine(frames: Tensor) -> Tensor:
    """Cosine of each frame's feature with the next one's, (B, F, G) to (B, F - 1)."""
    directions = l2_normalize(frames)
    return (directions[:, :-1] * directions[:, 1:]).sum(dim=-1)


def even_places(tokens: int, count: int) -> Tensor:
    """`count` distinct places spread evenly over 0..tokens-1, ascending, (count,): floor((i + 1/2) tokens / count)."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * tokens / max(1, count)).long()


def even_shares(total: int, parts: int) -> list[int]:
    """A whole number in equal parts, the remainder spread evenly over them."""
    return [(part + 1) * total // parts - part * total // parts for part in range(parts)]


def quota_members(scores: Tensor, groups: Tensor, quotas: Tensor) -> Tensor:
    """The best tokens of each group, as many as its quota says, (B, N) bool; ties go to the lower index.

    Args:
        scores: (B, N), higher is better.
        groups: Group number of each token, (N,), 0..G-1.
        quotas: (B, G) int64; a quota above the size of its group takes all of it.
    """
    return rank_in_group(scores, groups) < quotas[:, groups]


def similarity_segments(similarity: Sequence[float], segments: int, threshold: float) -> tuple[Span, ...]:
    """Cut a video behind its least similar neighbours: at the `segments - 1` smallest and at all below a threshold.

    Args:
        similarity: Of each frame with the next, F - 1 numbers; ties go to the earlier cut.
        segments: Least number of segments, as far as there are frames.
        threshold: Similarities below it always cut.

    Source: Shen et al., "FastVID", NeurIPS 2025 (dynamic temporal segmentation).
    """
    order = sorted(range(len(similarity)), key=lambda place: (similarity[place], place))
    cuts = set(order[: max(0, segments - 1)]) | {place for place in order if similarity[place] < threshold}
    ends = [*sorted(cuts), len(similarity)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return tuple(zip(starts, ends, strict=True))


def runs(labels: Sequence[int]) -> tuple[Span, ...]:
    """Maximal stretches of equal labels."""
    starts = [place for place, label in enumerate(labels) if place == 0 or label != labels[place - 1]]
    return tuple(zip(starts, [*(start - 1 for start in starts[1:]), len(labels) - 1], strict=True))


def constant_cells(similar: Tensor) -> Tensor:
    """Cells that do not change from frame i to frame j, counted for all i <= j: (B, F, F) int64, 0 below the diagonal.

    Args:
        similar: Whether each cell of frame f is like the one of frame f + 1, (B, F - 1, P) bool.
    """
    units, steps, cells = similar.shape
    counts = torch.zeros(units, steps + 1, steps + 1, dtype=torch.long, device=similar.device)
    places = torch.arange(steps + 1, device=similar.device)
    counts[:, places, places] = cells
    constant = similar
    for length in range(1, steps + 1):
        starts = places[: steps + 1 - length]
        counts[:, starts, starts + length] = constant.sum(dim=-1)
        constant = constant[:, :-1] & similar[:, length:]
    return counts


def static_windows(counts: Sequence[Sequence[int]]) -> tuple[tuple[Span, ...], int]:
    """Windows of frames in which the most tokens repeat, and how many that are.

    A window of frames i..j saves (cells constant from i to j) x (j - i) tokens; the sum over a partition is made as
    large as it can be. Of equally good last windows the shortest wins.

    Args:
        counts: `constant_cells` of one video, F x F.

    Source: Shao et al., "HoliTom", 2025 (dynamic programme over temporal windows).
    """
    frames = len(counts)
    best, start = [0] * (frames + 1), [0] * (frames + 1)
    for end in range(1, frames + 1):
        best[end] = -1
        for first in range(end - 1, -1, -1):
            saved = best[first] + counts[first][end - 1] * (end - 1 - first)
            if saved > best[end]:
                best[end], start[end] = saved, first
    windows: list[Span] = []
    end = frames
    while end:
        windows.append((start[end], end - 1))
        end = start[end]
    return tuple(reversed(windows)), best[frames]


def mean_pairwise_cosine(cells: Tensor) -> Tensor:
    """Mean cosine between different frames at each cell, (f, P, D) to (P,); 0 for a single frame, where there are none.

    The sum over all pairs is the squared length of the sum of the unit vectors.
    """
    frames = cells.shape[0]
    directions = l2_normalize(cells)
    own = directions.square().sum(dim=(0, 2))
    pairs = directions.sum(dim=0).square().sum(dim=-1) - own
    return pairs / max(1, frames * (frames - 1))
