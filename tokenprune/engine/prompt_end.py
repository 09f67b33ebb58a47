"""Keep the last token of a prompt even if the pruner drops it: the model's answer is read from its row."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from tokenprune.engine.state.prefill import Unit
from tokenprune.pruner import Kept


def ending_units(units: Sequence[Unit], samples: Collection[int]) -> frozenset[int]:
    """Indices of the units whose last token is the last token of their sample.

    Args:
        units: All images and videos of the batch, in order.
        samples: Samples whose prompt ends in an image or video.
    """
    last = {unit.span.sample: number for number, unit in enumerate(units)}
    return frozenset(number for sample, number in last.items() if sample in samples)


def keeps_last(kept: Kept, tokens: int) -> bool:
    """Whether a decision keeps the last of a unit's tokens."""
    return bool((kept.anchors == tokens - 1).any())


def with_last(kept: Kept, tokens: int, *, resized: bool) -> Kept:
    """Change a decision so that the last of a unit's N tokens is emitted, as the last row.

    A dropped last token is added as one more row, unchanged; rows into which it was merged stay as they are. If the
    image was resized, no row belongs to a single token: then the last emitted row takes the last token's position.

    Args:
        kept: The pruner's decision.
        tokens: N.
        resized: The image was resized.
    """
    anchors = kept.anchors
    if resized:
        if keeps_last(kept, tokens) or not len(anchors):
            return kept
        moved = anchors.clone()
        moved[anchors.argmax()] = tokens - 1
        return Kept(moved, kept.merge, kept.log_weights, kept.labels)
    if not keeps_last(kept, tokens):
        kept = _appended(kept, tokens)
    place = int((kept.anchors == tokens - 1).nonzero()[0, 0])
    if place == len(kept.anchors) - 1:
        return kept
    order = [*(row for row in range(len(kept.anchors)) if row != place), place]
    return Kept(
        kept.anchors[order],
        None if kept.merge is None else kept.merge.to_dense()[order],
        None if kept.log_weights is None else kept.log_weights[order],
        None if kept.labels is None else tuple(kept.labels[row] for row in order),
    )


def _appended(kept: Kept, tokens: int) -> Kept:
    """A decision with the last token as an additional row."""
    merge, weights = kept.merge, kept.log_weights
    if merge is not None:
        merge = merge.to_dense()
        row = merge.new_zeros(1, tokens)
        row[0, tokens - 1] = 1
        merge = torch.cat([merge, row])
    if weights is not None:
        weights = torch.cat([weights, weights.new_zeros(1)])
    return Kept(
        torch.cat([kept.anchors, kept.anchors.new_full((1,), tokens - 1)]),
        merge,
        weights,
        None if kept.labels is None else (*kept.labels, "last"),
    )
