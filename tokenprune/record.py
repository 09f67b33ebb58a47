"""Records of what pruning did: per unit and stop, per layer, and in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What one stop did to one unit."""

    sample: int
    image: int
    site: str
    decoder_layer: int
    before: int
    asked: int
    kept: int
    indices: tuple[int, ...]
    """Original indices of the anchors, in the order of the emitted rows."""
    merged: bool
    log_weights: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    auto: bool = False
    """The number of kept tokens follows from the data, so it may differ from `asked`."""
    held: bool = False
    """The prompt ends in this unit, and its last token was kept although the pruner dropped it; `kept` counts it."""


@dataclass(frozen=True, slots=True)
class PruneRecord:
    """What one prefill did: per unit and stop, per layer, and in the cache.

    Example:
        >>> from tokenprune import load_model, pruned
        >>> loaded = load_model("scenes")
        >>> with pruned(loaded, "fastv", tokens=64) as session:
        ...     answer = loaded.answer("docs/examples/circle.png", "what color is the circle ?")
        >>> record = session.last
        >>> record.visual_tokens, record.layer_average()
        (((256, 256, 64, 64, 64, 64),), (128.0,))
    """

    pruner: str
    units: tuple[UnitRecord, ...]
    visual_tokens: tuple[tuple[int, ...], ...]
    """Per sample, the visual tokens of each decoder layer, (samples, L)."""
    sequence_lengths: tuple[tuple[int, ...], ...]
    """Per sample, all tokens (text too) of each decoder layer, which are also its KV entries, (samples, L)."""
    original_visual_tokens: tuple[int, ...]
    mlp_visual_tokens: tuple[tuple[int, ...], ...] = ()
    """Like `visual_tokens`, for the MLPs, if a `mid` cut makes them differ; otherwise empty."""
    kv_visual_tokens: tuple[tuple[int, ...], ...] = ()
    """Like `visual_tokens`, for the KV caches, if a cut with `kv_from` makes them differ; otherwise empty."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def entering(self) -> tuple[int, ...]:
        """Account (i): visual tokens that enter the LLM, per sample."""
        return tuple(row[0] for row in self.visual_tokens)

    def layer_average(self) -> tuple[float, ...]:
        """Account (ii): visual tokens averaged over the decoder layers, per sample.

        A layer that is cut between attention and MLP counts with the mean of both numbers.
        """
        by_module = (self.visual_tokens, self.mlp_visual_tokens or self.visual_tokens)
        means = [_means(rows) for rows in by_module]
        return tuple((attention + mlp) / 2 for attention, mlp in zip(*means, strict=True))

    def kv_tokens(self) -> tuple[float, ...]:
        """Account (iii): visual tokens left in the KV cache after the prefill, averaged over the layers, per sample."""
        return _means(self.kv_visual_tokens or self.visual_tokens)

    def final(self) -> tuple[int, ...]:
        """Visual tokens left after the last cut, per sample."""
        return tuple(row[-1] for row in self.mlp_visual_tokens or self.visual_tokens)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one decoding step attended to, for every image in the cache."""

    layer: int
    """First decoder layer with hidden tokens."""
    cached: tuple[int, ...]
    """Per image, visual tokens in the cache."""
    visible: tuple[int, ...]
    """Per image, visual tokens that were not hidden."""


def _means(rows: tuple[tuple[int, ...], ...]) -> tuple[float, ...]:
    return tuple(sum(row) / len(row) for row in rows)
