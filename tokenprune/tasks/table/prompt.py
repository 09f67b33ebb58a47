"""The text that a model is asked: a question of a table, its choices and an instruction."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Final

from tokenprune.errors import ConfigError
from tokenprune.tasks.table.answers import LETTERS

LETTER_PROMPT: Final = "Answer with the option's letter from the given choices directly."
SHORT_PROMPT: Final = "Answer the question using a single word or phrase."
_FIELDS: Final = ("question", "choices")


def default_template(choices: bool, letters: bool, short: bool) -> str:
    """The template of a task that has none of its own.

    Args:
        choices: Whether the table lists the choices.
        letters: Whether the answer is a letter.
        short: Whether the user asks for a short answer.
    """
    parts = ["{question}"]
    if choices:
        parts.append("{choices}")
    if letters:
        parts.append(LETTER_PROMPT)
    elif short:
        parts.append(SHORT_PROMPT)
    return "\n".join(parts)


def check_template(template: object, choices: bool) -> str:
    """Check a user's template.

    Raises:
        ConfigError: It is no text, lacks the question or the choices, or has other fields.
    """
    hint = "write `{question}` and `{choices}` as they are, and other braces twice: `{{`"
    if not isinstance(template, str):
        raise ConfigError(f"`prompt` must be a text with `{{question}}`, got {template!r}", hint=hint)
    try:
        parsed = [(name, spec, way) for _, name, spec, way in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"`prompt` is no template: {error}", hint=hint) from None
    for name, spec, way in parsed:
        if name not in _FIELDS or spec or way:
            raise ConfigError(
                f"`prompt` has the field `{{{name}}}`, allowed are {{question}} and {{choices}}", hint=hint
            )
    names = {name for name, _, _ in parsed}
    if "question" not in names:
        raise ConfigError("`prompt` has no `{question}`", hint=hint)
    if choices and "choices" not in names:
        raise ConfigError(
            "`prompt` has no `{choices}`, and the task has choices", hint="put `{choices}` where the options belong"
        )
    if not choices and "choices" in names:
        raise ConfigError(
            "`prompt` has `{choices}`, and the task has none", hint="give their column or columns with `choices`"
        )
    return template


def fill(template: str, question: str, options: Sequence[str]) -> str:
    """The prompt of one question."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return template.format(question=question, choices="\n".join(lines))
