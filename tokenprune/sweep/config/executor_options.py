"""Options of executors: a schema each, and errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tokenprune.errors import ConfigError


class ExecutorOptions(BaseModel):
    """Options of an executor: a text or a number each. An executor without options has this schema itself.

    Example:
        class MyOptions(ExecutorOptions):
            nodes: int = Field(1, ge=1)

        class MyExecutor:
            Options = MyOptions
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        """An empty text stands for the default."""
        return {name: value for name, value in given.items() if value != ""}


def options_schema(make: Callable[..., Any]) -> type[ExecutorOptions]:
    """The schema of an executor's class."""
    schema: type[ExecutorOptions] = getattr(make, "Options", ExecutorOptions)
    return schema


def check_option(executor: str, make: Callable[..., Any], option: str, value: object) -> None:
    """Make sure that an executor knows an option, and that its value is a single one.

    Args:
        executor: Its name, for the message.
        make: Its class.
        option: Name of the option.
        value: Its value; another one may replace it later, so its range is not checked.

    Raises:
        ConfigError: The option is not known, or the value is a list or a mapping.
    """
    known = list(options_schema(make).model_fields)
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


def parse_options(executor: str, make: Callable[..., Any], options: Mapping[str, Any]) -> ExecutorOptions:
    """The options of an executor, checked.

    Raises:
        ConfigError: An option is not known, or its value is not one that it can have.
    """
    for option, value in options.items():
        check_option(executor, make, option, value)
    schema = options_schema(make)
    try:
        return schema(**options)
    except ValidationError as error:
        found = error.errors()[0]
        option = str(found["loc"][0])
        raise ConfigError(
            f"`{option}` must be {_expected(schema, option, found['msg'])}, got `{found['input']}`", hint="leave it out"
        ) from error


def _expected(schema: type[ExecutorOptions], option: str, otherwise: str) -> str:
    """What values an option can have, in words."""
    field = schema.model_fields[option]
    least = [each.ge for each in field.metadata if hasattr(each, "ge")]
    if least:
        return f"a whole number of at least {least[0]}"
    values = get_args(field.annotation)
    return f"one of {', '.join(values)}" if values and all(isinstance(value, str) for value in values) else otherwise
