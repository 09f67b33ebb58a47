"""Position offsets that some models keep of their last prompt, by the KV cache to which they belong.

A model whose positions have several axes numbers the text after an image on from the image's largest row or column. It
keeps the difference to the token's place on itself, that of the last prompt. With several conversations, or threads,
that may be another one's. So the difference is kept with each pruned cache, and given back when it is used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NAME = "rope_deltas"


def offsets_of(base: nn.Module, batch: int) -> Tensor | None:
    """What a multimodal model adds to the positions of the coming tokens, (B, 1); `None` where it keeps nothing."""
    found = getattr(base, _NAME, None)
    if not isinstance(found, Tensor):
        return None
    return found.repeat_interleave(batch // found.shape[0], dim=0)


def give_back(base: Any, offsets: Tensor | None) -> None:
    """Let a model go on from an earlier prompt."""
    if offsets is not None:
        setattr(base, _NAME, offsets)
