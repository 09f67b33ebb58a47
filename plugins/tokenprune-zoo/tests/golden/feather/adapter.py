"""FEATHER: attention without RoPE over the image, with the grid at the first cut."""

from __future__ import annotations

import math

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording

from ..layers import rms_norm, split_heads


def check(case: Case) -> list[str]:
    """Kept original indices and scores at both cuts."""
    parameters = case.parameters
    start, text = int(parameters["image_start"]), int(parameters["text_after"])
    tokens = case.given("hidden0").shape[0] - start - text
    side = math.isqrt(tokens)
    layers = [int(layer) for layer in parameters["layers"]]
    pruner = build(
        "feather",
        {"layers": layers, "stride": parameters["stride"], "ratio": parameters["keep_ratio"], "published": True},
    )
    left, found = torch.arange(tokens), []
    for stage, layer in enumerate(layers):
        normed = rms_norm(case.given(f"hidden{stage}"), case.given(f"s{stage}_norm"), float(parameters["rms_eps"]))
        queries, keys = (
            split_heads(normed @ case.given(f"s{stage}_{name}").T, int(parameters["heads"])) for name in ("wq", "wk")
        )
        visual = keys[:, :, start + left]
        recording = Recording(
            tokens=left.shape[0],
            keys_nope=visual,
            values=visual,  # attention is all that is asked for
            queries_nope={"last": queries[:, :, -1:]},
            grid=(side, side),
        )
        score = pruner.score(look(pruner, recording, layer=layer), layer)[0]  # type: ignore[attr-defined]
        found.append(close(f"score{stage}", score, case.wanted(f"score{stage}")))
        decision = decide(pruner, recording, left.shape[0], layer=layer, indices=left[None], original=tokens)
        left = left[decision.units[0].anchors]
        found.append(same(f"keep{stage}", left, case.wanted(f"keep{stage}")))
    return differences(*found)
