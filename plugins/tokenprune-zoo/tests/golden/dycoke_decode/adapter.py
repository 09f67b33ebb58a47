"""DyCoke, decoding part: the view of the cache at each step."""

from __future__ import annotations

import torch

from tokenprune.pruner import Site, State
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording

#: Rows of text behind the image, in these files as in all of their kind.
_TEXT = 20


def check(case: Case) -> list[str]:
    """Similarity of the steps, steps with a view, and rows of the view.

    The published image ends one token early. The files name the shorter one, so the token behind it is its last.
    """
    parameters, attention = case.parameters, case.given("attn_rows")
    start, layer = int(parameters["image_start"]), int(parameters["layer"])
    rate, length = float(parameters["prune_rate"]), attention.shape[-1]
    pruned = case.wanted("pruned_at_step")
    scored = _scored(length, start, rate, int(case.wanted(f"view{int(pruned.argmax())}").shape[0]))
    pruner = build(
        "dycoke",
        {
            "decode_rate": rate,
            "layer": layer,
            "similarity": parameters["similarity_threshold"],
            "published": True,
        },
    )
    state: State = {}
    seen: State = {}
    found, made = [], []
    text = torch.arange(length)
    text = text[(text < start) | (text > start + scored)]
    for step, row in enumerate(attention):
        recording = Recording(tokens=scored + 1, attention={"last": row[None, :, None, start : start + scored + 1]})
        kept = decide(pruner, recording, scored + 1, site=Site("decode", layer), state=state).units[0].anchors
        score = row[None, :, start : start + scored].mean(dim=1)
        cosine = pruner.likeness((0,), score, seen)  # type: ignore[attr-defined]
        found.append(close(f"similarity{step}", cosine, case.wanted(f"similarity{step}")))
        made.append(int(kept.shape[0] <= scored))
        if case.has(f"out.view{step}"):
            rows = torch.cat((text, kept + start)).sort().values
            found.append(same(f"view{step}", rows, case.wanted(f"view{step}")))
    return differences(*found, same("pruned_at_step", made, pruned))


def _scored(length: int, start: int, rate: float, rows: int) -> int:
    """Image tokens that a view chooses from; a file gives only the rows of the sequence and of a view."""
    fitting = [count for count in range(1, length - start) if length - count + int((1 - rate) * count) == rows]
    return length - start - _TEXT if length - start - _TEXT in fitting else fitting[-1]
