"""Options of executors in sweep files: known ones, with single values."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from tokenprune.errors import ConfigError


def check_option(executor: str, make: Callable[..., Any], option: str, value: object) -> None:
    """Make sure that an executor knows an option, and that its value is a single one.

    Args:
        executor: Its name, for the message.
        make: Its class; the options are the keyword-only arguments.
        option: Name of the option.
        value: Its value.

    Raises:
        ConfigError: The option is not known, or the value is a list or a mapping.
    """
    parameters = inspect.signature(make).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    if option not in known:
        close = difflib.get_close_matches(option, known, n=1)
        raise ConfigError(
            f"unknown option `{option}` of executor `{executor}`" + "".join(f", did you mean `{it}`?" for it in close),
            hint=f"its options: {', '.join(known) or 'none'}",
        )
    if not isinstance(value, str | int | float):
        raise ConfigError(
            f"option `{option}` of executor `{executor}` must be one text or number, got {value!r}",
            hint="leave it out for the default",
        )
