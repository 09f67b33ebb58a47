"""Position offsets that some models store for their last prompt; a pruned cache keeps those of its own prompt.

If positions have several axes, the text after an image continues from the image's largest row or column. The model
stores the difference to the plain token count as its own attribute, for its last prompt only. With several
conversations or threads, that may be the prompt of another one. So each pruned cache keeps the offset of its prompt,
and the engine puts it back before the cache is used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NAME = "rope_deltas"


def offsets_of(base: nn.Module, batch: int) -> Tensor | None:
    """What a multimodal model adds to the positions of later tokens, (B, 1); `None` if it stores no offset."""
    found = getattr(base, _NAME, None)
    if not isinstance(found, Tensor):
        return None
    return found.repeat_interleave(batch // found.shape[0], dim=0)


def give_back(base: Any, offsets: Tensor | None) -> None:
    """Put the offsets of an earlier prompt back on the model."""
    if offsets is not None:
        setattr(base, _NAME, offsets)
