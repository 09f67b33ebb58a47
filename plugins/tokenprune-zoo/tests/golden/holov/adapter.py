"""HoloV: quotas of the chunks and the order of emission."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices in the published order; its zero rows (-1) are left out."""
    attention = case.given("cls_attn")[None]
    recording = Recording(tokens=attention.shape[-1], cls_attention=attention, projected=case.given("features")[None])
    options = {name: case.parameters[name] for name in ("num_chunks", "alpha")}
    pruner = build("holov", {**options, "published": True})
    kept = decide(pruner, recording, int(case.parameters["T"])).units[0]
    order = case.wanted("keep_official_order")
    return differences(
        same("keep", kept.anchors.sort().values, case.wanted("keep")),
        same("order", kept.anchors, order[order >= 0]),
    )
