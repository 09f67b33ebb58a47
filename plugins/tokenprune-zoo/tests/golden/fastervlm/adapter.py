"""FasterVLM: CLS attention, top-k."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices."""
    attention = case.given("cls_attn")[None]
    recording = Recording(tokens=attention.shape[-1], cls_attention=attention)
    kept = decide(build("fastervlm"), recording, int(case.parameters["T"])).units[0]
    return differences(same("keep", kept.anchors, case.wanted("keep")))
