"""DyCoke, temporal part: whole frames and the least similar cells of the others."""

from __future__ import annotations

from tokenprune.errors import PrerequisiteError
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices, in the order in which they are emitted."""
    features, ratio = case.given("features"), float(case.parameters["merging_ratio"])
    pruner = build("dycoke", {"merging_ratio": ratio, "published": True})
    fewer, rows = int(case.parameters["kept_per_pruned_frame"]), case.wanted("keep").shape[0]
    recording = Recording(
        tokens=features.shape[0], projected=features[None], frames=_frames(features.shape[0], ratio, fewer, rows)
    )
    kept = decide(pruner, recording, recording.tokens).units[0].anchors
    return differences(
        same("keep", kept.sort().values, case.wanted("keep")),
        same("keep_official_order", kept, case.wanted("keep_official_order")),
    )


def _frames(tokens: int, ratio: float, fewer: int, rows: int) -> int:
    """Frames of the video: the file gives only how many cells a pruned one keeps, and how many rows come out."""
    for frames in range(1, tokens + 1):
        cells = tokens // frames
        if cells * frames != tokens or int((1 - ratio) * cells) != fewer:
            continue
        pruned = frames // 2 + len(range(0, frames - 4, 4))
        if (frames - frames % 2 - pruned) * cells + pruned * fewer == rows:
            return frames
    raise PrerequisiteError(f"{rows} of {tokens} tokens fit no number of frames", hint="is the file complete?")
