"""DivPrune: farthest-point selection."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices."""
    features = case.given("features")[None]
    recording = Recording(tokens=features.shape[1], projected=features)
    kept = decide(build("divprune"), recording, int(case.parameters["T"])).units[0]
    return differences(same("keep", kept.anchors, case.wanted("keep")))
