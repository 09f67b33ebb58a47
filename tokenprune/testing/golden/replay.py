"""Run a registered pruner on recorded tensors, one stop at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from tokenprune.budget import Budget
from tokenprune.errors import IncompatibleError
from tokenprune.plugins import default_host
from tokenprune.pruner import Decision, Kept, Pruner, Site, State, Stop
from tokenprune.testing.recorded_view import RecordedView
from tokenprune.testing.recording import Recording

if TYPE_CHECKING:
    from torch import Tensor


class ReplayView(RecordedView):
    """A recorded view of a later stop, or of an encoder whose layers differ.

    Args:
        recording: The tensors.
        pruner: Gives the needs.
        keep: K.
        site: Where the cut is.
        encoder: Recordings by encoder layer (0-based, of 24); empty where one recording serves all.
        indices: Original index of each token still there, (B, N); all tokens where `None`.
        original: Tokens before the first cut; those of the recording where `None`.
    """

    def __init__(
        self,
        recording: Recording,
        pruner: Pruner,
        keep: int,
        site: Site,
        *,
        encoder: Mapping[int, Recording] | None = None,
        indices: Tensor | None = None,
        original: int | None = None,
    ) -> None:
        super().__init__(recording, keep, pruner.needs, site=site)
        self._encoder = encoder or {}
        self._indices = indices
        self.original_tokens = recording.tokens if original is None else original

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """CLS attention of the recording of that layer, (B, H, N)."""
        recording = self._at(layer)
        return self._get("encoder_attention", f"cls_attention of layer {layer}", recording.cls_attention)

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Received attention of the recording of that layer, (B, N)."""
        recording = self._at(layer)
        return self._get("encoder_attention", f"received_attention of layer {layer}", recording.received_attention)

    def indices(self) -> Tensor:
        """Original indices, (B, N)."""
        return super().indices() if self._indices is None else self._indices

    def fingerprints(self) -> tuple[int, ...]:
        """The number of the unit: it is the same at every stop, unlike the tensors of the stops."""
        self._declared("fingerprint")
        return tuple(range(self.units))

    def _at(self, layer: int | None) -> Recording:
        if layer is None or not self._encoder:
            return self._recording
        found = self._encoder.get(layer % self.facts.encoder_layers)
        if found is None:
            raise IncompatibleError(f"encoder layer {layer} was not recorded", hint=f"recorded: {list(self._encoder)}")
        return found


def registered(name: str) -> bool:
    """Whether an installed distribution has a pruner of this name."""
    return name in default_host().pruners


def build(name: str, options: Mapping[str, Any] | None = None) -> Pruner:
    """A registered pruner by name, as a sweep makes it."""
    return cast(Pruner, default_host().pruners.get(name).build(options))


def decide(
    pruner: Pruner,
    recording: Recording,
    keep: int,
    *,
    layer: int | None = None,
    state: State | None = None,
    encoder: Mapping[int, Recording] | None = None,
    indices: Tensor | None = None,
    original: int | None = None,
    site: Site | None = None,
    budget: Budget | None = None,
) -> Decision:
    """One stop of a pruner.

    Args:
        pruner: The pruner.
        recording: What it sees.
        keep: K.
        layer: Decoder layer that the cut enters, for pruners that cut there; its option `layer` where `None`.
        state: Shared by the stops.
        encoder: See `ReplayView`.
        indices: See `ReplayView`.
        original: See `ReplayView`.
        site: Where the cut is, for pruners with several kinds of sites.
        budget: The stop's budget, for pruners that read the ratio itself; `keep` tokens where `None`.
    """
    view = look(pruner, recording, keep, layer=layer, encoder=encoder, indices=indices, original=original, site=site)
    stop = Stop(view.site, budget or Budget(tokens=max(1, keep)))
    return pruner.decide(view, stop, {} if state is None else state)


def emitted(kept: Kept, rows: Tensor) -> Tensor:
    """What a decision makes of the tokens' rows (N, D), (K, D)."""
    return rows[kept.anchors] if kept.merge is None else kept.merge @ rows


def look(
    pruner: Pruner,
    recording: Recording,
    keep: int = 1,
    *,
    layer: int | None = None,
    encoder: Mapping[int, Recording] | None = None,
    indices: Tensor | None = None,
    original: int | None = None,
    site: Site | None = None,
) -> ReplayView:
    """What `decide` shows to the pruner, for looking at its scores; arguments as there."""
    kind = "layer" if layer is not None else pruner.spec.sites[0]
    at = getattr(pruner, "layer", 0) if layer is None and kind == "layer" else layer or 0
    site = site or Site(cast(Any, kind), at)
    return ReplayView(recording, pruner, keep, site, encoder=encoder, indices=indices, original=original)
