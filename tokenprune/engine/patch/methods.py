"""Replace a method of one module for the time of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

#: Methods of transformers that encode images and videos, with the projector; `generate` and forward passes call them.
ENCODING = ("get_image_features", "get_video_features")


@contextlib.contextmanager
def method_changed(
    module: nn.Module, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace a method of one module inside the block.

    Args:
        module: The module; other modules of its class are not changed.
        name: The method.
        change: Makes the new method from the present one.
    """
    before = vars(module).get(name)
    object.__setattr__(module, name, change(getattr(module, name)))
    try:
        yield
    finally:
        object.__delattr__(module, name)
        if before is not None:
            object.__setattr__(module, name, before)
