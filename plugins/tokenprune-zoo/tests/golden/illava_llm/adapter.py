"""iLLaVA, decoder part: kept rows and the folded one."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording

#: The published merged row is rounded to half precision.
_TOLERANCE = 2e-3


def check(case: Case) -> list[str]:
    """Kept indices, members of the fold and emitted rows."""
    start, text = int(case.parameters["image_start"]), int(case.parameters["text_after"])
    hidden, row = case.given("hidden")[start:-text], case.given("attn_last_row")[:, start:-text]
    tokens = hidden.shape[0]
    keep = tokens - round(tokens * (1 - float(case.parameters["keep_ratio"])))
    recording = Recording(tokens=tokens, attention={"last": row[None, :, None]})
    kept = decide(build("illava", {"published": True}), recording, keep, layer=8).units[0]
    assert kept.merge is not None
    members = (kept.merge > 0).sum(dim=-1).argmax()  # the one row that is made of several
    return differences(
        same("keep", kept.anchors, case.wanted("keep")),
        same(
            "merged",
            kept.merge[members].nonzero().squeeze(-1),
            case.wanted("merged_least_last").sort().values,
        ),
        close("features", emitted(kept, hidden), case.wanted("features"), relative=_TOLERANCE),
    )
