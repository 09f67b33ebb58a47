"""Turn a finished prefill into a `PruneRecord`."""

from __future__ import annotations

from tokenprune.engine.state.prefill import Prefill, TokenCounts
from tokenprune.pruner import PruneRecord


def record_of(prefill: Prefill, pruner: str) -> PruneRecord:
    """The record of a complete prefill.

    Args:
        prefill: The prefill.
        pruner: Name of the pruner.
    """
    original = [0] * prefill.input_ids.shape[0]
    for unit in prefill.units:
        original[unit.span.sample] += unit.original
    visual = _per_sample(prefill.attended)
    mlp, cached = _per_sample(prefill.through_mlp), _per_sample(prefill.cached)
    return PruneRecord(
        pruner=pruner,
        units=tuple(prefill.records),
        visual_tokens=visual,
        sequence_lengths=tuple(zip(*(counts.total.tolist() for counts in prefill.attended), strict=True)),
        original_visual_tokens=tuple(original),
        mlp_visual_tokens=mlp if mlp != visual else (),
        kv_visual_tokens=cached if cached != visual else (),
    )


def _per_sample(counts: list[TokenCounts]) -> tuple[tuple[int, ...], ...]:
    """Visual tokens by sample, then by layer."""
    return tuple(zip(*(each.visual.tolist() for each in counts), strict=True))
