"""SparseVLM v1.0: the number of kept tokens from the rank of the raters' attention."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording

from ..sparsevlm_plus.adapter import chosen_raters


def check(case: Case) -> list[str]:
    """Kept indices."""
    attention = case.given("attn_text_rows")[None]
    words, tokens = attention.shape[2:]
    visual, text = chosen_raters(case.given("raters"), words, tokens)
    recording = Recording(
        tokens=tokens, hidden=visual, projected=visual, text_embeddings=text, attention={"text": attention}
    )
    options = {"rank_scale": case.parameters["scale"], "rank_bias": case.parameters["bias"], "recycle_share": 0.0}
    kept = decide(build("sparsevlm", options), recording, tokens, layer=3).units[0]
    return differences(same("keep", kept.anchors, case.wanted("keep")))
