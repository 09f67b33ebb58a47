"""The reasons why families refuse kinds of cuts; light specs and full descriptions use the same texts."""

from __future__ import annotations

from collections.abc import Mapping

from tokenprune.site import SITE_KINDS

#: Kinds of sites on the vision side.
VISION_KINDS = ("pixels", "tower", "encoder")

LINEAR_ATTENTION = (
    "its decoder has linear attention layers, whose running state mixes all tokens: no token can be taken out of it"
)
CONVOLUTION = (
    "its decoder has convolution layers over neighbouring tokens: where one is taken out, its neighbours change"
)
CROSS_ATTENTION = "its images enter through cross-attention layers: the sequence of its decoder holds no visual tokens"
SEVERAL_LAYERS = "its projector reads several encoder layers, which would have different rows after a cut between them"


OBSERVED_ONLY = (
    "its encoder can be looked into but not cut: what a pruner chooses there is taken out at the LLM input, behind the "
    "projector"
)
NO_ENCODER_ATTENTION = "its vision encoder is convolutional: it has no attention and no rows of tokens"
UNSEEN_ATTENTION = (
    "its vision encoder comes from timm and computes attention by itself, where queries and keys cannot be seen"
)


def everywhere(reason: str) -> Mapping[str, str]:
    """One reason for every kind of site."""
    return dict.fromkeys(SITE_KINDS, reason)


def no_cuts(family: str) -> Mapping[str, str]:
    """The reasons on the vision side of a family whose encoder can be observed but not cut."""
    return {kind: OBSERVED_ONLY if kind == "encoder" else no_vision(family) for kind in VISION_KINDS}


def no_vision(family: str) -> str:
    """The reason for a family whose description has no vision side that can be cut."""
    return f"family `{family}` has no description of a vision side that can be cut"


def no_resize(family: str) -> str:
    """The reason for a vision encoder that runs on images of one size only."""
    return f"the vision encoder of family `{family}` cannot run on a smaller image"
