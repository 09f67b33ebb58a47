"""Texts, options and accepted answers from the cells of a table."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenprune.errors import ConfigError
from tokenprune.tasks.table.cells import Place, absent, listed

LETTERS: Final = string.ascii_uppercase
#: What the answers of a choice may be: the option's letter, its number from 0, or its text.
READINGS: Final = ("letter", "index", "text")


def text(cell: Any, place: Place) -> str:
    """A cell as text; whole numbers have no `.0`, whatever type their column has.

    Raises:
        ConfigError: The cell is empty, or neither text nor a number.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell):
        raise ConfigError(f"{place}: the cell is empty", hint="fill the cell, or leave the row out")
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, (list, tuple, Mapping, bytes)):
        raise ConfigError(f"{place}: a {type(cell).__name__} is no text", hint="write a text or a number")
    return str(cell)


def accepted(cell: Any, place: Place) -> tuple[str, ...]:
    """The accepted answers of a cell, in their order, each as often as it is given.

    A list gives several, also a list as text if all of its entries are texts in quotes. An entry may be a dict with
    the key `answer`.

    Raises:
        ConfigError: There is none, or one of them is no text.
    """
    if isinstance(cell, str):
        parsed = listed(cell)
        if parsed and all(isinstance(each, str) for each in parsed):
            cell = parsed
    if not isinstance(cell, (list, tuple)):
        return (text(cell, place),)
    if not cell:
        raise ConfigError(f"{place}: the list of answers is empty", hint="write an answer, or leave the row out")
    return tuple(text(each.get("answer") if isinstance(each, Mapping) else each, place) for each in cell)


def commonest(answers: Sequence[str]) -> str:
    """The answer that is given most often; of several, the first."""
    return Counter(answers).most_common(1)[0][0]


def options_of_list(cell: Any, place: Place) -> tuple[str, ...]:
    """The options of a cell that holds a list, or a list as text.

    Raises:
        ConfigError: It holds no list, or no option, or too many.
    """
    parsed = listed(cell) if isinstance(cell, str) else cell
    if not isinstance(parsed, (list, tuple)):
        raise ConfigError(
            f"{place}: the choices must be a list, got {_short(cell)}",
            hint='write a list, for example ["red", "blue"], or give the columns of the choices as `choices: [A, B]`',
        )
    return _counted(tuple(text(each, place) for each in parsed), place)


def options_of_columns(row: Mapping[str, Any], columns: Sequence[str], table: str, index: int) -> tuple[str, ...]:
    """The options of a row with a column for each; the last ones may be empty (or `nan`).

    Raises:
        ConfigError: All are empty, or an empty one comes before another one.
    """
    filled = [column for column in columns if not absent(row[column])]
    for column, expected in zip(filled, columns, strict=False):
        if column != expected:
            raise ConfigError(
                f"{Place(table, index, expected)}: the cell is empty, and `{column}` after it is not",
                hint="fill the choices from the first one on, so that their letters are known",
            )
    options = tuple(text(row[column], Place(table, index, column)) for column in filled)
    return _counted(options, Place(table, index, columns[0]))


def letter_of(cell: Any, options: Sequence[str], reading: str | None, place: Place) -> str:
    """The letter of the right option.

    Args:
        cell: The option's letter, its number counted from 0, or its text.
        options: The options; none if the question itself lists them, and then only a letter has a meaning.
        reading: One of `READINGS`, if the user says what the column holds.
        place: Where the cell is, for messages.

    Raises:
        ConfigError: The answer names no option, or different ones.
    """
    answers = tuple(dict.fromkeys(accepted(cell, place)))
    if len(answers) > 1:
        raise ConfigError(
            f"{place}: a choice has one right answer, got {', '.join(answers)}", hint="write the letter of one option"
        )
    answer = answers[0].strip()
    found = {kind: letter for kind, letter in _readings(answer, options) if reading in (None, kind)}
    letters = sorted(set(found.values()))
    if len(letters) == 1:
        return letters[0]
    allowed = ", ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)) or "A to Z"
    if not letters:
        what = f"as {reading}" if reading else "by its letter, its number from 0 or its text"
        raise ConfigError(
            f"{place}: `{answer}` names no option {what}, or several; the options are: {allowed}",
            hint="write the letter of the right option",
        )
    said = " and ".join(f"{letter} as {kind}" for kind, letter in found.items())
    raise ConfigError(
        f"{place}: `{answer}` names different options: {said}; the options are: {allowed}",
        hint=f"say what the column holds: `answer_is: {' | '.join(found)}`",
    )


def _readings(answer: str, options: Sequence[str]) -> list[tuple[str, str]]:
    """What an answer can mean: pairs of a kind of `READINGS` and a letter."""
    found: list[tuple[str, str]] = []
    letters = LETTERS[: len(options)] if options else LETTERS
    if len(answer) == 1 and answer.upper() in letters:
        found.append(("letter", answer.upper()))
    if answer.isascii() and answer.isdigit() and int(answer) < len(options):
        found.append(("index", LETTERS[int(answer)]))
    for same in (str.strip, lambda option: option.strip().casefold()):
        equal = [number for number, option in enumerate(options) if same(option) == same(answer)]
        if equal:
            if len(equal) == 1:
                found.append(("text", LETTERS[equal[0]]))
            break
    return found


def _counted(options: tuple[str, ...], place: Place) -> tuple[str, ...]:
    if not 0 < len(options) <= len(LETTERS):
        raise ConfigError(
            f"{place}: there are {len(options)} choices, allowed are 1 to {len(LETTERS)}",
            hint="fill the choices, or leave the row out",
        )
    return options


def _short(cell: Any) -> str:
    shown = repr(cell)
    return shown if len(shown) <= 80 else shown[:77] + "..."
