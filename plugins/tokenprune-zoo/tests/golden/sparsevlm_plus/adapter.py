"""SparseVLM+: attention divided by the response of RoPE, mean over the most visual heads."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune import dual
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording

from ..layers import rotary_tables

_LAYER = 3


def check(case: Case) -> list[str]:
    """Kept indices, gravity and score."""
    parameters, attention = case.parameters, case.given("attn_text_rows")[None]
    words, tokens = attention.shape[2:]
    visual, text = chosen_raters(case.given("raters"), words, tokens)
    # positions are what is recorded of queries and keys: vectors of ones, rotated and not
    width, start = int(parameters["head_dim"]), int(parameters["image_start"])
    base = float(parameters["rope_base"])
    keys, queries = (torch.ones(1, 1, count, width) for count in (tokens, words))
    places = torch.arange(start, start + tokens + words)
    recording = Recording(
        tokens=tokens,
        hidden=visual,
        projected=visual,
        text_embeddings=text,
        attention={"text": attention},
        keys_nope=keys,
        keys=dual.rotate(keys, *rotary_tables(places[:tokens], width, base)),
        queries_nope={"text": queries},
        queries={"text": dual.rotate(queries, *rotary_tables(places[tokens:], width, base))},
    )
    options = {"plus": True, "heads": int(parameters["heads_used"]), "relative": False}
    pruner, keep = build("sparsevlm", options), int(parameters["kept"])
    view = look(pruner, recording, keep, layer=_LAYER)
    gravity = dual.rotary_response(
        (view.queries("text", rope=True)[0], view.queries("text", rope=False)[0]),
        (view.keys(rope=True), view.keys(rope=False)),
    )
    rows, raters = pruner.rated(view, _LAYER, {})  # type: ignore[attr-defined]
    kept = decide(pruner, recording, keep, layer=_LAYER).units[0]
    return differences(
        close("gravity", gravity[0], case.wanted("gravity")),
        close("score", rows[0][raters[0]].mean(dim=0), case.wanted("score")),
        same("keep", kept.anchors, case.wanted("keep")),
    )


def chosen_raters(raters: Tensor, words: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Embeddings of image (1, N, 1) and text (1, T, 1) for which exactly the given words are raters."""
    text = torch.zeros(words).scatter(0, raters, 30.0)
    return torch.ones(1, tokens, 1), text[None, :, None]
