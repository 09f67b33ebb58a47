"""The engine: the only place that touches torch hooks and transformers internals."""

from tokenprune.engine.observe.capture import CapturedLayer, capture_prefill
from tokenprune.engine.pruning import pruned
from tokenprune.engine.session import Session
from tokenprune.engine.state.prefill_memo import PrefillMemo

__all__ = ["CapturedLayer", "PrefillMemo", "Session", "capture_prefill", "pruned"]
