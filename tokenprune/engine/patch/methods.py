"""Methods of one module that answer otherwise for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

#: Where transformers encodes images and videos, with the projector, whether `generate` or a forward pass asks for it.
ENCODING = ("get_image_features", "get_video_features")


@contextlib.contextmanager
def method_changed(
    module: nn.Module, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """A method of one module, changed inside the block.

    Args:
        module: The module; others of its class keep theirs.
        name: The method.
        change: Makes the method out of the present one.
    """
    before = vars(module).get(name)
    object.__setattr__(module, name, change(getattr(module, name)))
    try:
        yield
    finally:
        object.__delattr__(module, name)
        if before is not None:
            object.__setattr__(module, name, before)
