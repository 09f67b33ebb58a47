"""DART: pivots in the published order take the tokens least similar to them."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices."""
    start, tokens = int(case.parameters["image_start"]), case.wanted("key_l1").shape[0]
    end, keys, normed = start + tokens, case.given("keys"), case.given("hidden_normed")
    recording = Recording(
        tokens=tokens,
        keys=keys[None, :, start:end],
        text_keys=keys[None, :, end:],
        final_visual=normed[None, start:end],
        final_text=normed[None, end:],
    )
    options = {name: int(case.parameters[name]) for name in ("pivot_image", "pivot_text", "image_start")}
    kept = decide(build("dart", {**options, "published": True}), recording, int(case.parameters["kept_total"])).units[0]
    return differences(same("keep", kept.anchors, case.wanted("keep")))
