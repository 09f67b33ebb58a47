"""The engine: the only place that touches torch hooks and transformers internals."""

from tokenprune.engine.observe.capture import CapturedLayer, capture_prefill
from tokenprune.engine.observe.prefill_cache import PrefillMemo
from tokenprune.engine.session import Session, pruned

__all__ = ["CapturedLayer", "PrefillMemo", "Session", "capture_prefill", "pruned"]
