"""HoliTom, inner part: what the last row attends to, the others merged by halves."""

from __future__ import annotations

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices, what merges where, and emitted rows."""
    start, text = int(case.parameters["image_start"]), int(case.parameters["text_after"])
    hidden, row = case.given("hidden")[start:-text], case.given("attn_last_row")[:, start:-text]
    tokens = hidden.shape[0]
    pruner = build("holitom", {"inner_rate": case.parameters["removed"], "published": True})
    recording = Recording(tokens=tokens, hidden=hidden[None], attention={"last": row[None, :, None]})
    kept = decide(pruner, recording, tokens, layer=18).units[0]
    assert kept.merge is not None
    dropped = torch.ones(tokens, dtype=torch.bool).scatter(0, kept.anchors, False).nonzero().squeeze(-1)
    return differences(
        same("keep", kept.anchors, case.wanted("keep")),
        same("dropped", dropped, case.wanted("dropped")),
        same("merged_into", kept.anchors[kept.merge[:, dropped].argmax(dim=0)], case.wanted("merged_into")),
        close("features", emitted(kept, hidden), case.wanted("features")),
    )
