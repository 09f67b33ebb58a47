"""How many visual tokens may stay: one knob, one way to write it, one rounding rule, for every pruner.

How a budget is written, stated once: a whole number is a number of tokens (`64`), a fraction or a percentage is a
ratio (`0.25`, `25%`). `1` is one token; all tokens are `100%` or `1.0`.

The rounding rule, stated once: a ratio `r` of `N` tokens is `floor(r * N + 1/2)`, at least 1 and at most `N`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from tokenprune.errors import BudgetError

Account = Literal["kept", "average"]

BudgetLike = str | float
"""A budget as people write it: `64`, `0.25`, `"25%"`; an int is a `float` to the type checker, but not to `parse`."""

_WHOLE = re.compile(r"[+-]?[0-9]+")
_PERCENTAGE = re.compile(r"([^%]*)%")
_WAYS = "a whole number is tokens (`64`), a fraction or a percentage is a ratio (`0.25`, `25%`)"


@dataclass(frozen=True, slots=True)
class Budget:
    """Visual tokens to keep per image: either a ratio or a number, never both.

    Args:
        ratio: Share of the visual tokens that stays, 0 < ratio <= 1.
        tokens: Number of visual tokens that stays, >= 1.
        account: What the figure counts: `kept`, the tokens left after the last cut, or `average`, the mean
            number of visual tokens over the decoder layers, each layer counted at the size it really runs.

    Raises:
        BudgetError: Neither or both figures given, or one out of range.

    Example:
        >>> from tokenprune import Budget
        >>> Budget(ratio=0.25).count(576), Budget(tokens=64).count(576), Budget.parse("11.1%").count(576)
        (144, 64, 64)
    """

    ratio: float | None = None
    tokens: int | None = None
    account: Account = "kept"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.tokens is None):
            raise BudgetError(
                f"a budget needs either `ratio` or `tokens`, got ratio={self.ratio}, tokens={self.tokens}",
                hint="for example `Budget(ratio=0.25)` or `Budget(tokens=64)`",
            )
        if self.ratio is not None:
            if not _is_number(self.ratio, Real) or not 0.0 < self.ratio <= 1.0:
                raise BudgetError(
                    f"keep ratio must lie in (0, 1], got {self.ratio!r}",
                    hint="0.25 keeps a quarter, 1.0 everything; a number of tokens is a whole number",
                )
            object.__setattr__(self, "ratio", float(self.ratio))
        if self.tokens is not None:
            if not _is_number(self.tokens, Integral) or self.tokens < 1:
                raise BudgetError(
                    f"keep tokens must be a whole number >= 1, got {self.tokens!r}", hint="64 keeps 64 tokens"
                )
            object.__setattr__(self, "tokens", int(self.tokens))
        if self.account not in ("kept", "average"):
            raise BudgetError(f"unknown budget account `{self.account}`", hint="use `kept` or `average`")

    @classmethod
    def parse(cls, value: Budget | BudgetLike, *, account: Account | None = None) -> Budget:
        """The budget that a person wrote, in Python, in a sweep file or on the command line.

        Args:
            value: A whole number (`64`, `"64"`) is tokens; another number (`0.25`, `"0.25"`, `1.0`) is a ratio; a text
                with `%` is a ratio too. A `Budget` stays as it is.
            account: What the figure counts; without it `kept`, or what the `Budget` has.

        Raises:
            BudgetError: It is none of these, or out of range.
        """
        if isinstance(value, Budget):
            return value if account is None else dataclasses.replace(value, account=account)
        written = _number(value) if isinstance(value, str) else value
        chosen: Account = account or "kept"
        if _is_number(written, Integral):
            return cls(tokens=int(written), account=chosen)
        if not _is_number(written, Real) or math.isnan(written):
            raise BudgetError(f"not a budget: {value!r}", hint=_WAYS)
        return cls(ratio=float(written), account=chosen)

    def count(self, tokens: int) -> int:
        """Number of tokens to keep of `tokens` (the rounding rule above).

        Raises:
            BudgetError: `tokens` is not positive.
        """
        if tokens < 1:
            raise BudgetError(f"cannot keep a share of {tokens} tokens", hint="at least one visual token is needed")
        return max(1, min(math.floor(self._figure(tokens) + 0.5), tokens))

    def _figure(self, tokens: int) -> float:
        """The budget of `tokens` before rounding."""
        return self.ratio * tokens if self.ratio is not None else float(self.tokens or 0)

    def after_cut(self, layer: int, num_layers: int, tokens: int) -> Budget:
        """The budget that a single cut entering decoder layer `layer` must use to meet this one.

        With account `kept` this is the budget itself. With `average`, layers `0..layer-1` run all `tokens`
        and the rest run `T`, so `T = (average * L - layer * N) / (L - layer)`.

        Raises:
            BudgetError: The layers before the cut alone use more than the budget; the message gives the floor.
        """
        if self.account == "kept" or layer == 0:
            return Budget(ratio=self.ratio, tokens=self.tokens)
        average = self._figure(tokens)
        kept = (average * num_layers - layer * tokens) / (num_layers - layer)
        if kept < 1.0:
            floor = (layer * tokens + (num_layers - layer)) / num_layers
            raise BudgetError(
                f"a cut entering layer {layer} of {num_layers} cannot average {average:.1f} of {tokens} tokens: "
                f"its floor is {floor:.1f} ({floor / tokens:.1%})",
                hint="cut at an earlier layer, raise the budget, or compare at equal `kept` tokens",
            )
        return Budget(tokens=min(tokens, max(1, math.floor(kept + 0.5))))

    def label(self) -> str:
        """Short text for tables: `25%` or `64`."""
        return f"{100 * self.ratio:.3g}%" if self.ratio is not None else str(self.tokens)


def _is_number(value: object, kind: type) -> bool:
    """Whether a value is a number of a kind (also one of NumPy's); `True` and `False` are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _number(text: str) -> int | float:
    """A text as an int (tokens) or a float (a ratio).

    Raises:
        BudgetError: It is neither.
    """
    figure = text.strip()
    percentage = _PERCENTAGE.fullmatch(figure)
    try:
        if percentage is not None:
            return float(percentage[1]) / 100.0
        return int(figure) if _WHOLE.fullmatch(figure) else float(figure)
    except ValueError:
        raise BudgetError(f"not a budget: {text!r}", hint=_WAYS) from None
