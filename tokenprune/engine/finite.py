"""NaN and infinite values in what a pruner is given or answers: said by name, before anything is cut.

What a view gives is reduced to one code for each unit on the device. The codes are read together with the kept
indices, which are read anyway, so that looking costs no further wait for the device. A pruner that looks at nothing
that is not finite, such as `grid` or `random`, is not stopped: its choice does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import NotFiniteError
from tokenprune.pruner import Decision, Kept, State, Stop

#: What a code means.
_WORDS = ("", "infinite values", "NaN")
#: What views count themselves.
_COUNTED = ("coordinates", "sizes")
_FAILURES = (ArithmeticError, LookupError, RuntimeError, ValueError)


class WatchedView:
    """A view that notes, for each unit, whether the tensors that it gives are finite.

    Args:
        view: An engine's view of B units.
        name: The pruner.
        labels: What the B units are called in messages.
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

        def give(*args: Any, **kwargs: Any) -> Any:
            given = found(*args, **kwargs)
            self._note(name, given if isinstance(given, tuple) else (given,))
            return given

        return give

    def _note(self, name: str, given: Sequence[Any]) -> None:
        for value, after in zip(given, (*given[1:], None), strict=True):
            if isinstance(value, Tensor) and value.is_floating_point():
                mask = after if isinstance(after, Tensor) and after.dtype == torch.bool else None
                self._codes.append((name, _by_unit(value, mask)))

    def asked(self, decide: Callable[..., Decision], stop: Stop, state: State) -> Decision:
        """The answer of a pruner that looks at this view.

        Raises:
            NotFiniteError: It failed after it was given values that are not finite.
        """
        try:
            return decide(self, stop, state)
        except _FAILURES as error:
            for unit in range(len(self._labels)):
                self._check(unit, [(name, int(code)) for name, code in self._of(unit)], error)
            raise

    def read(self, unit: int, kept: Kept) -> list[int]:
        """The kept indices, read from the device in one go with what was noted of a unit.

        Raises:
            NotFiniteError: The unit's tensors, or the answer's weights, are not finite.
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
                    hint="half precision overflows there or the inputs hold it: load the model in float32 or bfloat16, "
                    "and look at the logits of the model that is not pruned",
                ) from cause


def _by_unit(value: Tensor, mask: Tensor | None) -> Tensor:
    """Codes (B,) of values (B, ...); where a mask (B, R) comes with (B, ..., R, d), of the real rows."""
    if mask is None:
        return _code(_largest(value, range(1, value.ndim)))
    rows = _largest(value, [axis for axis in range(1, value.ndim) if axis != value.ndim - 2])
    return _code(_largest(rows.masked_fill(~mask, 0.0), [1]))


def _largest(values: Tensor, axes: Sequence[int]) -> Tensor:
    """The largest size along some axes; NaN where there is one."""
    if values.numel() == 0:
        return values.new_zeros([length for axis, length in enumerate(values.shape) if axis not in axes])
    largest: Tensor = torch.linalg.vector_norm(values, ord=float("inf"), dim=tuple(axes)) if axes else values.abs()
    return largest


def _code(largest: Tensor) -> Tensor:
    return largest.isnan().long() * 2 + largest.isinf().long()
