"""Llama 3.2 Vision: its images enter through cross-attention layers, so the sequence holds nothing to cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, Visual
from tokenprune.families.reasons import CROSS_ATTENTION, everywhere


def layout(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """No layout: one token marks the place of an image and is no part of it.

    Raises:
        IncompatibleError: Always.
    """
    del config, inputs, runs
    raise IncompatibleError(
        f"family `mllama` has no visual tokens: {CROSS_ATTENTION}", hint="`tokenprune families` lists what can be cut"
    )


MLLAMA = Family(name="mllama", layout=layout, refused=everywhere(CROSS_ATTENTION))
