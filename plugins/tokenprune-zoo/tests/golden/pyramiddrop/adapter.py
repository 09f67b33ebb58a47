"""PyramidDrop: the last row's attention at each boundary, with renumbered positions after the first."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune import dual
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording

from ..layers import rms_norm, rotary_tables, split_heads


def check(case: Case) -> list[str]:
    """Kept original indices and scores at every boundary."""
    ratios = [float(ratio) for ratio in case.parameters["ratios"]]
    start, text = int(case.parameters["image_start"]), int(case.parameters["text_after"])
    hidden = case.given("hidden")
    tokens = hidden.shape[0] - start - text
    pruner, left = build("pyramiddrop"), torch.arange(tokens)
    found = []
    for stage, ratio in enumerate(ratios[1:]):
        sequence = torch.cat((hidden[:start], hidden[start:-text][left], hidden[-text:]))
        recording = _recording(case, stage, sequence, start, left.shape[0])
        score = look(pruner, recording, layer=8).attention("last")[0].mean(dim=1)[0, 0]
        found.append(close(f"score{stage}", score, case.wanted(f"score{stage}")))
        decision = decide(pruner, recording, int(tokens * ratio), layer=8, indices=left[None], original=tokens)
        left = left[decision.units[0].anchors]
        found.append(same(f"keep{stage}", left, case.wanted(f"keep{stage}")))
    return differences(*found)


def _recording(case: Case, stage: int, sequence: Tensor, start: int, tokens: int) -> Recording:
    """Queries and keys of the layer behind the boundary; positions 0, 1, 2, ... of what is there."""
    heads, width = int(case.parameters["heads"]), int(case.parameters["head_dim"])
    normed = rms_norm(sequence, case.given(f"s{stage}_norm"), float(case.parameters["rms_eps"]))
    tables = rotary_tables(torch.arange(sequence.shape[0]), width, float(case.parameters["rope_base"]))
    queries, keys = (
        dual.rotate(split_heads(normed @ case.given(f"s{stage}_{name}").T, heads), *tables) for name in ("wq", "wk")
    )
    visual = keys[:, :, start : start + tokens]
    others = torch.cat((keys[:, :, :start], keys[:, :, start + tokens :]), dim=2)
    return Recording(
        tokens=tokens,
        keys=visual,
        values=visual,  # attention is all that is asked for
        context_keys=others,
        context_values=others,
        queries={"last": queries[:, :, -1:]},
    )
