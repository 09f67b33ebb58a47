"""VisPruner: important part and the order of the diverse pool."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices."""
    attention = case.given("cls_attn")[None]
    recording = Recording(
        tokens=attention.shape[-1], cls_attention=attention, encoder_features=case.given("features")[None]
    )
    options = {name: case.parameters[name] for name in ("important_ratio", "drop_per_round")}
    kept = decide(build("vispruner", options), recording, int(case.parameters["T"])).units[0]
    return differences(same("keep", kept.anchors, case.wanted("keep")))
