"""SCOPE: greedy weighted coverage."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording

_COMBINE = {"multi": "multiply", "add": "add"}


def check(case: Case) -> list[str]:
    """Kept indices."""
    attention = case.given("cls_attn")[None]
    recording = Recording(
        tokens=attention.shape[-1], cls_attention=attention, encoder_features=case.given("features")[None]
    )
    options = {"alpha": case.parameters["alpha"], "combine": _COMBINE[case.parameters["combine"]]}
    kept = decide(build("scope", options), recording, int(case.parameters["T"])).units[0]
    return differences(same("keep", kept.anchors, case.wanted("keep")))
