"""Comparing what a pruner gives with what a file wants; an empty list means that all is equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Relative tolerance of float outputs, as the vectors' own description gives it.
TOLERANCE = 1e-3


def same(what: str, got: Tensor | Sequence[int], wanted: Tensor | Sequence[int]) -> list[str]:
    """Whole numbers, equal in the same order."""
    found, expected = _numbers(got), _numbers(wanted)
    if found == expected:
        return []
    if len(found) != len(expected):
        return [f"{what}: {len(found)} entries, not {len(expected)}"]
    wrong = [place for place, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    first = wrong[0]
    return [f"{what}: {len(wrong)} of {len(found)} differ, the first at {first}: {found[first]}, not {expected[first]}"]


def close(what: str, got: Tensor, wanted: Tensor, *, relative: float = TOLERANCE) -> list[str]:
    """Floats, to a relative tolerance and a hundredth of it of the largest entry."""
    import torch

    if got.shape != wanted.shape:
        return [f"{what}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}"]
    got, wanted = got.double(), wanted.double()
    largest = float(wanted.abs().amax()) if wanted.numel() else 0.0
    if torch.allclose(got, wanted, rtol=relative, atol=1e-2 * relative * largest):
        return []
    return [f"{what}: off by up to {float((got - wanted).abs().amax()):.3g} where the largest entry is {largest:.3g}"]


def differences(*findings: Iterable[str]) -> list[str]:
    """All findings in one list."""
    return [line for lines in findings for line in lines]


def _numbers(values: Tensor | Sequence[int]) -> list[int]:
    return [int(value) for value in (values.flatten().tolist() if hasattr(values, "flatten") else values)]
