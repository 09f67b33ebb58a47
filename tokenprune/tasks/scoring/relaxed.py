"""Relaxed accuracy (ChartQA). Source: lmms-eval 0.7.3, VLMEvalKit 2026-08-18."""

from __future__ import annotations

from collections.abc import Sequence


def _value(text: str) -> float | None:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(prediction: str, reference: str, *, tolerance: float = 0.05) -> float:
    """1 if a number is within 5 % of the reference, or if the texts are equal in lower case; otherwise 0.

    A text that ends in `%` is divided by 100. Commas between thousands are not read: `1,000` is a text. A reference
    of 0 is compared as a text. Years are numbers, too: 2100 counts as 2010.
    """
    ours, theirs = _value(prediction), _value(reference)
    if ours is not None and theirs:
        return float(abs(ours - theirs) / abs(theirs) <= tolerance)
    return float(prediction.lower() == reference.lower())


def best_relaxed_accuracy(prediction: str, references: Sequence[str], *, tolerance: float = 0.05) -> float:
    """The best relaxed accuracy over several references, with the prediction stripped (VLMEvalKit)."""
    return max((relaxed_accuracy(prediction.strip(), one, tolerance=tolerance) for one in references), default=0.0)
