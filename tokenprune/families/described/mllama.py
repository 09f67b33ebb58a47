"""Llama 3.2 Vision: images enter through cross-attention layers, so the sequence has no visual tokens to remove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, Visual
from tokenprune.families.reasons import CROSS_ATTENTION, everywhere


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """No layout: a single token marks the position of each image and holds nothing of it.

    Raises:
        IncompatibleError: Always.
    """
    del config, inputs, runs
    raise IncompatibleError(
        f"family `mllama` has no visual tokens: {CROSS_ATTENTION}", hint="`tokenprune families` lists what can be cut"
    )


MLLAMA = Family(name="mllama", layout=layout, refused=everywhere(CROSS_ATTENTION))
