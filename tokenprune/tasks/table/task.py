"""The task `table`: a user's own pictures, questions and answers, described by options alone."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenprune.errors import ConfigError
from tokenprune.registry import load_target
from tokenprune.tasks.base import Sample
from tokenprune.tasks.table.answers import (
    LETTERS,
    READINGS,
    accepted,
    commonest,
    letter_of,
    options_of_columns,
    options_of_list,
    text,
)
from tokenprune.tasks.table.cells import Place, picture_files, pictures
from tokenprune.tasks.table.prompt import check_template, default_template, fill
from tokenprune.tasks.table.source import digest_files, open_table

VERSION: Final = "table-1.0"
CHOICE: Final = "choice"
#: Metrics by name. Each takes a prediction and the accepted answers and gives a score between 0 and 1; `choice` takes
#: a prediction, the letters and the options and gives the letter that the prediction means, or None.
METRICS: dict[str, str] = {
    "exact": "tokenprune.tasks.table.metrics:exact",
    "contains": "tokenprune.tasks.table.metrics:contains",
    CHOICE: "tokenprune.tasks.scoring.letters:sound_letter",
    "vqa": "tokenprune.tasks.table.metrics:soft_accuracy",
    "anls": "tokenprune.tasks.table.metrics:anls",
    "relaxed": "tokenprune.tasks.table.metrics:relaxed",
    "number": "tokenprune.tasks.table.metrics:number",
}
#: The family of all questions of a table without a column for it.
ONE_FAMILY: Final = "all"
#: Columns that hold the pictures if the user names none: the first one that the table has.
PICTURE_COLUMNS: Final = ("image", "image_path", "file_name")
#: The column that VLMEvalKit's cells refer to.
_INDEX: Final = "index"
#: The letters of a choice whose options are in the question.
_OPEN_LETTERS: Final = LETTERS[:8]
#: Stands for an `image` that is left out.
_AUTOMATIC: Final = ""


class TableTask:
    """Questions of a table.

    All rows but their pictures are read and checked when the task is made, so that no mistake shows up halfway.

    Args:
        table: Path of the table (see `tokenprune.tasks.table.source.open_table`).
        image: Column with the pictures, or a list of such columns; None asks without pictures. If it is left out: the
            first of the columns `image`, `image_path` and `file_name` that the table has. A row whose cell is empty
            is asked without pictures.
        question: Column with the question.
        answer: Column with the answer, or with a list of accepted answers. For a choice: the letter of the right
            option, its number counted from 0, or its text.
        choices: Column with a list of options, or a list of columns with one option each.
        id: Column with a name for each row; if it is left out, the names are made from the row's number.
        family: Column with the kind of question.
        metric: One of `METRICS`; if it is left out, `choice` for a task with choices, otherwise `exact`.
        prompt: Template with `{question}` and `{choices}`.
        short: Ask for an answer of a single word or phrase.
        split: What the results call this part of the data; no rows are chosen by it.
        max_new_tokens: Longest answer, in tokens; if it is left out, 16 for a choice or a short answer, otherwise 64.
        answer_is: What the answers of a choice are if they have two meanings: `letter`, `index` or `text`.

    Raises:
        ConfigError: An option is not valid, the table lacks a column, or a row of it cannot be used.
    """

    name = "table"
    version = VERSION

    def __init__(
        self,
        table: str | Path,
        image: str | Sequence[str] | None = _AUTOMATIC,
        question: str = "question",
        answer: str = "answer",
        choices: str | Sequence[str] | None = None,
        id: str | None = None,
        family: str | None = None,
        metric: str | None = None,
        prompt: str | None = None,
        short: bool = False,
        split: str = "test",
        max_new_tokens: int | None = None,
        answer_is: str | None = None,
    ) -> None:
        self.metric = _metric(metric, choices is not None)
        _check_kinds(table, split, short, max_new_tokens)
        if answer_is is not None and (answer_is not in READINGS or self.metric != CHOICE):
            raise ConfigError(
                f"`answer_is` is {answer_is!r}, allowed are {', '.join(READINGS)}, for the metric `{CHOICE}`",
                hint="leave it out, or say what the column of a choice's answers holds",
            )
        if short and (prompt is not None or self.metric == CHOICE):
            reason = "`prompt` says what is asked" if prompt is not None else "a choice asks for a letter"
            raise ConfigError(f"`short` has no effect: {reason}", hint="leave `short` out")
        self.table = open_table(table)
        if not len(self.table):
            raise ConfigError(f"`{self.table.name}` has no rows", hint="give a table with questions")
        self._images = self._picture_columns(image)
        self._question, self._answer = self._column("question", question), self._column("answer", answer)
        self._id = None if id is None else self._column("id", id)
        self._family = None if family is None else self._column("family", family)
        self._choices: str | tuple[str, ...] | None = None
        if isinstance(choices, str):
            self._choices = self._column("choices", choices)
        elif choices is not None:
            self._choices = self._columns("choices", choices)
        self._reading = answer_is
        has_choices = self._choices is not None
        self._template = (
            default_template(has_choices, self.metric == CHOICE, short)
            if prompt is None
            else check_template(prompt, has_choices)
        )
        self.split = split
        self.max_new_tokens = max_new_tokens or (16 if short or self.metric == CHOICE else 64)
        self._rows_by_index: dict[str, int] | None = None
        self._digest = ""
        self.families = self._checked_rows()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, with its pictures in plain RGB."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a task of {len(self)}")
        row = self.table.row(index)
        images = tuple(
            picture
            for column in self._images
            for picture in pictures(
                row[column],
                self._place(index, column),
                self.table.folder,
                self._other_cell(column, index),
            )
        )
        return self._sample(row, index, images)

    def score(self, prediction: str, sample: Sample) -> float:
        """Score one prediction between 0 (wrong) and 1 (right) with the task's metric."""
        metric = load_target(METRICS[self.metric])
        if self.metric == CHOICE:
            return float(metric(prediction, sample.facts["letters"], sample.facts["choices"]) == sample.answer)
        return float(metric(prediction, sample.facts["answers"]))

    def digest(self) -> str:
        """Hash of the version, the options, the table's files and the pictures that its cells name.

        Raises:
            ConfigError: A picture's file is missing.
        """
        if not self._digest:
            facts = {
                "version": self.version,
                "split": self.split,
                "columns": [self._images, self._question, self._answer, self._choices, self._id, self._family],
                "metric": self.metric,
                "template": self._template,
                "reading": self._reading,
                "max_new_tokens": self.max_new_tokens,
                "table": self.table.digest(),
                "pictures": digest_files(self.table.folder, self._picture_files()),
            }
            self._digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._digest

    def _sample(self, row: Mapping[str, Any], index: int, images: tuple[Any, ...]) -> Sample:
        """A row as a sample.

        Raises:
            ConfigError: One of its cells cannot be used.
        """
        options: tuple[str, ...] = ()
        if isinstance(self._choices, str):
            options = options_of_list(row[self._choices], self._place(index, self._choices))
        elif self._choices is not None:
            options = options_of_columns(row, self._choices, self.table.name, index)
        place = self._place(index, self._answer)
        facts: dict[str, Any] = {}
        if self.metric == CHOICE:
            answer = letter_of(row[self._answer], options, self._reading, place)
            letters = LETTERS[: len(options)] if options else _OPEN_LETTERS
            if answer not in letters:
                raise ConfigError(
                    f"{place}: the letter `{answer}` is not among {letters[0]} to {letters[-1]}",
                    hint="give the options with `choices`",
                )
            facts = {"letters": letters, "choices": options, "answers": (answer,)}
        else:
            answers = accepted(row[self._answer], place)
            answer = commonest(answers)
            facts = {"answers": answers}
        question = text(row[self._question], self._place(index, self._question))
        return Sample(
            id=text(row[self._id], self._place(index, self._id)) if self._id else f"{VERSION}/{self.split}/{index}",
            images=images,
            question=fill(self._template, question, options),
            answer=answer,
            family=text(row[self._family], self._place(index, self._family)) if self._family else ONE_FAMILY,
            facts=facts,
        )

    def _checked_rows(self) -> tuple[str, ...]:
        """The families in the order in which they first appear; every cell but the pictures is checked."""
        extra = (self._choices,) if isinstance(self._choices, str) else self._choices or ()
        wanted = [self._question, self._answer, *extra, self._id, self._family]
        families: dict[str, None] = {}
        seen: dict[str, int] = {}
        for index, row in enumerate(self.table.records([*dict.fromkeys(filter(None, wanted))])):
            sample = self._sample(row, index, ())
            families[sample.family] = None
            if seen.setdefault(sample.id, index) != index:
                raise ConfigError(
                    f"{self._place(index, str(self._id))}: row {seen[sample.id]} has the same id `{sample.id}`",
                    hint="give a column whose values differ, or leave `id` out",
                )
        return tuple(families)

    def _picture_files(self) -> list[Path]:
        """The files that cells name, each once, without those that belong to the table itself."""
        known = dict.fromkeys(self.table.files)
        files: dict[Path, None] = {}
        for index, row in enumerate(self.table.records(self._images) if self._images else ()):
            for column in self._images:
                named = picture_files(row[column], self._place(index, column), self.table.folder, self._no_file(index))
                files.update(dict.fromkeys(path for path in named if path not in known))
        return list(files)

    def _no_file(self, index: int) -> Callable[[str], Any]:
        """Stands for the cells of other rows: their files are found when the other row's turn comes."""
        return lambda reference: [] if self._references().get(reference, index) != index else None

    def _references(self) -> dict[str, int]:
        """Rows by the value of the column `index`."""
        if self._rows_by_index is None:
            self._rows_by_index = {}
            if _INDEX in self.table.columns:
                for number, row in enumerate(self.table.records([_INDEX])):
                    self._rows_by_index.setdefault(str(row[_INDEX]), number)
        return self._rows_by_index

    def _other_cell(self, column: str, index: int) -> Callable[[str], Any]:
        """Gives the cell of the row that a short text refers to; None if it refers to no other row."""

        def follow(reference: str) -> Any:
            number = self._references().get(reference, index)
            return None if number == index else self.table.row(number)[column]

        return follow

    def _place(self, index: int, column: str) -> Place:
        return Place(self.table.name, index, column)

    def _picture_columns(self, image: str | Sequence[str] | None) -> tuple[str, ...]:
        if image is None:
            return ()
        if image == _AUTOMATIC:
            return tuple(column for column in PICTURE_COLUMNS if column in self.table.columns)[:1]
        return (self._column("image", image),) if isinstance(image, str) else self._columns("image", image)

    def _columns(self, option: str, columns: object) -> tuple[str, ...]:
        if not isinstance(columns, (list, tuple)) or not columns or len(set(map(str, columns))) != len(columns):
            raise ConfigError(
                f"`{option}` must be a column or a list of different columns, got {columns!r}",
                hint=f"its columns are: {', '.join(self.table.columns)}",
            )
        return tuple(self._column(option, column) for column in columns)

    def _column(self, option: str, column: object) -> str:
        if not isinstance(column, str):
            raise ConfigError(
                f"`{option}` must be the name of a column, got {column!r}",
                hint=f"`{self.table.name}` has: {', '.join(self.table.columns)}",
            )
        close = difflib.get_close_matches(column, self.table.columns, n=1)
        self.table.check(column, f"give the column with `{option}: {close[0] if close else '...'}`")
        return column


def _metric(metric: object, choices: bool) -> str:
    if metric is None:
        return CHOICE if choices else "exact"
    if not isinstance(metric, str) or metric not in METRICS:
        close = difflib.get_close_matches(str(metric), METRICS, n=1)
        raise ConfigError(
            f"unknown metric `{metric}`, allowed are {', '.join(METRICS)}",
            hint=f"did you mean `{close[0]}`?" if close else "give one of these with `metric`",
        )
    if choices and metric != CHOICE:
        raise ConfigError(
            f"`choices` are scored by the metric `{CHOICE}`, got `{metric}`", hint="leave out `metric`, or `choices`"
        )
    return metric


def _check_kinds(table: object, split: object, short: object, max_new_tokens: object) -> None:
    if not isinstance(table, (str, Path)) or not str(table):
        raise ConfigError(f"`table` must be a path, got {table!r}", hint="give the path of a table")
    if not isinstance(split, str) or not split:
        raise ConfigError(f"`split` must be a name, got {split!r}", hint="give for example `split: test`")
    if not isinstance(short, bool):
        raise ConfigError(f"`short` must be true or false, got {short!r}", hint="give `short: true`, or leave it out")
    whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
    if max_new_tokens is not None and not (whole and int(str(max_new_tokens)) >= 1):
        raise ConfigError(
            f"`max_new_tokens` must be a whole number of at least 1, got {max_new_tokens!r}",
            hint="give for example `max_new_tokens: 16`",
        )
