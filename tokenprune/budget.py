"""The budget of a pruner: how many visual tokens may stay, how it is written, and how it is rounded.

Notation: a whole number is a number of tokens (`64`), a fraction or a percentage is a ratio (`0.25`, `25%`). `1` is
one token; all tokens are `100%` or `1.0`.

Rounding: a ratio `r` of `N` tokens is `floor(r * N + 1/2)`, at least 1 and at most `N`.
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
"""A budget as users write it: `64`, `0.25`, `"25%"`. For type checkers an int is a `float`; not for `parse`."""

_WHOLE = re.compile(r"[+-]?[0-9]+")
_PERCENTAGE = re.compile(r"([^%]*)%")
_WAYS = "a whole number is tokens (`64`), a fraction or a percentage is a ratio (`0.25`, `25%`)"


@dataclass(frozen=True, slots=True)
class Budget:
    """Visual tokens to keep per image: either a ratio or a number, never both.

    Args:
        ratio: Share of the visual tokens that stays, 0 < ratio <= 1.
        tokens: Number of visual tokens that stay, >= 1.
        account: What the value counts: `kept`, the tokens left after the last cut, or `average`, the mean number of
            visual tokens over the decoder layers, each counted with the tokens that it really runs with.

    Raises:
        BudgetError: Neither or both of `ratio` and `tokens` are given, or a value is out of range.

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
        """Parse a budget as users write it in Python, in a sweep file or on the command line.

        Args:
            value: A whole number (`64`, `"64"`) is tokens. Any other number (`0.25`, `"0.25"`, `1.0`) and a text with
                `%` are a ratio. A `Budget` is returned as it is.
            account: What the value counts; by default `kept`, or the account of the `Budget`.

        Raises:
            BudgetError: The value is none of these, or out of range.
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
        """Number of tokens to keep of `tokens`, rounded by the rule of this module.

        Raises:
            BudgetError: `tokens` is not positive.
        """
        if tokens < 1:
            raise BudgetError(f"cannot keep a share of {tokens} tokens", hint="at least one visual token is needed")
        return max(1, min(math.floor(self._exact_count(tokens) + 0.5), tokens))

    def _exact_count(self, tokens: int) -> float:
        """The number of tokens to keep of `tokens`, before rounding."""
        return self.ratio * tokens if self.ratio is not None else float(self.tokens or 0)

    def after_cut(self, layer: int, num_layers: int, tokens: int) -> Budget:
        """The budget with which a single cut before decoder layer `layer` meets this one.

        With account `kept` this is the budget itself. With `average`, layers `0..layer-1` run all N `tokens`, and the
        other layers run T tokens, so `T = (average * L - layer * N) / (L - layer)`.

        Raises:
            BudgetError: The layers before the cut already use more than the budget; the message gives the smallest
                budget that can be met.
        """
        if self.account == "kept" or layer == 0:
            return Budget(ratio=self.ratio, tokens=self.tokens)
        average = self._exact_count(tokens)
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
        """Short text for tables, such as `25%` or `64`."""
        return f"{100 * self.ratio:.3g}%" if self.ratio is not None else str(self.tokens)


def _is_number(value: object, kind: type) -> bool:
    """Whether a value is a number of a kind, of Python or NumPy; `True` and `False` do not count as numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _number(text: str) -> int | float:
    """Parse a text as an int (tokens) or a float (ratio).

    Raises:
        BudgetError: The text is neither.
    """
    stripped = text.strip()
    percentage = _PERCENTAGE.fullmatch(stripped)
    try:
        if percentage is not None:
            return float(percentage[1]) / 100.0
        return int(stripped) if _WHOLE.fullmatch(stripped) else float(stripped)
    except ValueError:
        raise BudgetError(f"not a budget: {text!r}", hint=_WAYS) from None
