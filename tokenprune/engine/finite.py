"""Detect NaN and infinite values in a pruner's inputs and decisions, and report them before anything is cut.

Each tensor of a view is reduced on the device to one code per unit. The codes are read together with the kept indices,
which must be read anyway, so the check adds no wait for the device. A pruner that reads no such tensor, such as `grid`
or `random`, is not stopped, because its choice does not depend on the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import NotFiniteError
from tokenprune.pruner import Decision, Kept, State, Stop

#: Meaning of each code.
_WORDS = ("", "infinite values", "NaN")
#: Methods of a view whose values do not come from the model.
_COUNTED = ("coordinates", "sizes")
_FAILURES = (ArithmeticError, LookupError, RuntimeError, ValueError)


class WatchedView:
    """A view that records, for each unit, whether the tensors that it returns are finite.

    Args:
        view: The engine's view of B units.
        name: Name of the pruner.
        labels: Names of the B units in messages.
    """

    def __init__(self, view: Any, name: str, labels: Sequence[str]) -> None:
        self._view = view
        self._name = name
        self._labels = labels
        self._codes: list[tuple[str, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._view, name)
        if name in _COUNTED or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            values = found(*args, **kwargs)
            self._note(name, values if isinstance(values, tuple) else (values,))
            return values

        return call

    def _note(self, name: str, values: Sequence[Any]) -> None:
        for value, after in zip(values, (*values[1:], None), strict=True):
            if isinstance(value, Tensor) and value.is_floating_point():
                mask = after if isinstance(after, Tensor) and after.dtype == torch.bool else None
                self._codes.append((name, _by_unit(value, mask)))

    def asked(self, decide: Callable[..., Decision], stop: Stop, state: State) -> Decision:
        """The decision of a pruner on this view.

        Raises:
            NotFiniteError: The pruner failed after it had read values that are not finite.
        """
        try:
            return decide(self, stop, state)
        except _FAILURES as error:
            for unit in range(len(self._labels)):
                self._check(unit, [(name, int(code)) for name, code in self._of(unit)], error)
            raise

    def read(self, unit: int, kept: Kept) -> list[int]:
        """The kept indices of a unit, read from the device together with the unit's codes.

        Raises:
            NotFiniteError: The unit's tensors, or the decision's weights, are not finite.
        """
        codes = self._of(unit)
        answers = (("merge", kept.merge), ("log_weights", kept.log_weights))
        codes += [
            (f"answered {name}", _code(_largest(value.to_dense().float(), range(value.ndim))))
            for name, value in answers
            if value is not None
        ]
        if not codes:
            found: list[int] = kept.anchors.tolist()
            return found
        device = codes[0][1].device
        together = torch.cat([kept.anchors.to(device), torch.stack([code.to(device) for _, code in codes])]).tolist()
        count = len(together) - len(codes)
        self._check(unit, [(name, code) for (name, _), code in zip(codes, together[count:], strict=True)], None)
        return together[:count]

    def _of(self, unit: int) -> list[tuple[str, Tensor]]:
        return [(name, code[unit]) for name, code in self._codes]

    def _check(self, unit: int, codes: Sequence[tuple[str, int]], cause: BaseException | None) -> None:
        for name, code in codes:
            if code:
                raise NotFiniteError(
                    f"`{self._name}` cannot choose at site `{self._view.site}`: {_WORDS[code]} in `{name}` of "
                    f"{self._labels[unit]}",
                    hint="half precision may overflow there, or the inputs hold such values: load the model in float32 "
                    "or bfloat16, and look at the logits of the unpruned model",
                ) from cause


def _by_unit(value: Tensor, mask: Tensor | None) -> Tensor:
    """Codes (B,) of values (B, ...). With a mask (B, R), values (B, ..., R, d) count only in the real rows."""
    if mask is None:
        return _code(_largest(value, range(1, value.ndim)))
    rows = _largest(value, [axis for axis in range(1, value.ndim) if axis != value.ndim - 2])
    return _code(_largest(rows.masked_fill(~mask, 0.0), [1]))


def _largest(values: Tensor, axes: Sequence[int]) -> Tensor:
    """The largest absolute value along some axes; NaN if there is a NaN."""
    if values.numel() == 0:
        return values.new_zeros([length for axis, length in enumerate(values.shape) if axis not in axes])
    largest: Tensor = torch.linalg.vector_norm(values, ord=float("inf"), dim=tuple(axes)) if axes else values.abs()
    return largest


def _code(largest: Tensor) -> Tensor:
    return largest.isnan().long() * 2 + largest.isinf().long()
