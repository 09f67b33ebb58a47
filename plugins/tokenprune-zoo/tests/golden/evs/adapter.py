"""EVS: cells unlike the frame before, over the whole video."""

from __future__ import annotations

from tokenprune.budget import Budget
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices."""
    features = case.given("features")
    recording = Recording(
        tokens=features.shape[0],
        projected=features[None],
        grid=tuple(case.parameters["grid"]),
        frames=int(case.parameters["frames"]),
    )
    budget = Budget(ratio=1 - float(case.parameters["q"]))
    kept = decide(build("evs", {"published": True}), recording, budget.count(recording.tokens), budget=budget).units[0]
    return same("keep", kept.anchors, case.wanted("keep"))
