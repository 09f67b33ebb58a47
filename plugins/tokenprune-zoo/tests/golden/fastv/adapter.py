"""FastV: the last prompt row's attention, top-k."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices and score."""
    start, tokens = int(case.parameters["image_start"]), case.wanted("score").shape[0]
    row = case.given("attn_last_row")[None, :, None, start : start + tokens]
    pruner, recording = build("fastv"), Recording(tokens=tokens, attention={"last": row})
    score = pruner.score(look(pruner, recording))[0]  # type: ignore[attr-defined]
    kept = decide(pruner, recording, int(case.parameters["T"])).units[0]
    return differences(close("score", score, case.wanted("score")), same("keep", kept.anchors, case.wanted("keep")))
