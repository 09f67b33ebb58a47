"""VidCom2: similarity to the video and to the frame, rates of the frames, and what they keep."""

from __future__ import annotations

from tokenprune.budget import Budget
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Scores, rates, counts and kept indices; where row separators go is the model's layout, not a choice."""
    features, share = case.given("features"), float(case.parameters["base_scale"])
    frames, cells = case.wanted("score").shape
    recording = Recording(tokens=frames * cells, projected=features[None], grid=(1, cells), frames=frames)
    pruner = build("vidcom2", {"temperature": case.parameters["temperature"], "published": True})
    to_video, to_frame = pruner.similarity(look(pruner, recording))  # type: ignore[attr-defined]
    rates = pruner.rates(to_video, share)  # type: ignore[attr-defined]
    budget = Budget(ratio=share)
    kept = decide(pruner, recording, budget.count(recording.tokens), budget=budget).units[0].anchors
    return differences(
        close("video_score", to_video[0], case.wanted("video_score")),
        close("score", (to_video + to_frame)[0], case.wanted("score")),
        close("scales", rates[0], case.wanted("scales")),
        same("per_frame", (kept // cells).bincount(minlength=frames), case.wanted("per_frame")),
        same("keep", kept, case.wanted("keep")),
    )
