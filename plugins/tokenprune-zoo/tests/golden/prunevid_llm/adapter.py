"""PruneVid, stage 2: the text's attention without RoPE and causal mask, chosen from by set."""

from __future__ import annotations

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Scores, and kept indices in both orders."""
    parameters, queries, keys = case.parameters, case.given("q")[None], case.given("k")[None]
    start, text = int(parameters["image_start"]), int(parameters["text_after"])
    visual = keys[:, :, start:-text]
    others = torch.cat((keys[:, :, :start], keys[:, :, -text:]), dim=2)
    recording = Recording(
        tokens=visual.shape[2],
        keys_nope=visual,
        values=visual,  # attention is all that is asked for
        context_keys=others,
        context_values=others,
        queries_nope={"text": queries[:, :, -text:]},
    )
    pruner, group = build("prunevid", {"alpha": parameters["alpha"], "published": True}), _groups(case)
    score = pruner.score(look(pruner, recording, layer=11), 11)[0]  # type: ignore[attr-defined]
    kept = decide(pruner, recording, recording.tokens, layer=11, state={"groups": {0: group}}).units[0].anchors
    order = sorted(kept.tolist(), key=lambda token: (int(group[token]), -float(score[token]), token))
    return differences(
        close("score", score, case.wanted("score")),
        same("keep", kept, case.wanted("keep")),
        same("keep_official_order", order, case.wanted("keep_official_order")),
    )


def _groups(case: Case) -> torch.Tensor:
    """Set of each token: of every window its static rows, then the others frame by frame, (N,)."""
    sizes: list[int] = []
    names = ("static_sizes", "dynamic_sizes", "window_sizes")
    for static, dynamic, frames in zip(*(case.parameters[name] for name in names), strict=True):
        sizes += [static, *[dynamic // frames] * frames]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
