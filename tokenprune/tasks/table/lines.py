"""Rows of text files: JSON lines, and values between commas or tabs; a row is read when it is asked for."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from tokenprune.errors import ConfigError

Row = Mapping[str, Any]

#: The largest field that the csv module can be allowed; pictures in base64 are longer than its default.
_LARGEST_FIELD: Final = min(sys.maxsize, 2**31 - 1)
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class JsonRows:
    """The rows of a file with one JSON object in a line; blank lines do not count.

    The columns are the keys of all objects, in the order in which they first appear. A key that an object lacks reads
    as None.

    Args:
        path: The file.

    Raises:
        ConfigError: A line holds no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: list[int] = []
        columns: dict[str, None] = {}
        for start, values in self._scan():
            self._starts.append(start)
            columns.update(dict.fromkeys(values))
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        """One row."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            values = self._parsed(file.readline(), index)
        return {name: values.get(name) for name in self.columns}

    def records(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with these columns only."""
        for _, values in self._scan():
            yield {name: values.get(name) for name in columns}

    def _scan(self) -> Iterator[tuple[int, dict[str, Any]]]:
        index, start = 0, 0
        with self.path.open("rb") as file:
            for line in file:
                if line.removeprefix(_BYTE_ORDER_MARK).strip():
                    yield start, self._parsed(line, index)
                    index += 1
                start += len(line)

    def _parsed(self, line: bytes, index: int) -> dict[str, Any]:
        place = f"row {index} of `{self.path.name}` (counted from 0)"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise _no_utf_8(place) from None
        except ValueError as error:
            raise ConfigError(f"{place} is no JSON: {error}", hint="write one JSON object in each line") from None
        if not isinstance(values, dict):
            raise ConfigError(
                f"{place} is a JSON {type(values).__name__}, not an object", hint="write one JSON object in each line"
            )
        return values


class DelimitedRows:
    """The rows of a file with a header and values between commas or tabs; every value is text.

    A value in double quotes may hold delimiters, line feeds, and double quotes that are written twice.

    Args:
        path: The file.
        delimiter: What stands between two values.

    Raises:
        ConfigError: The header has a column twice, a row has too few or too many values, or a quote is not closed.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path = path
        self._delimiter = delimiter
        if csv.field_size_limit() < _LARGEST_FIELD:
            csv.field_size_limit(_LARGEST_FIELD)
        self.columns: tuple[str, ...] = ()
        self._starts = [start for start, _ in self._scan()]

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        """One row."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            for _, values in self._parsed(file, first=index):
                return self._named(values, index)
        raise ConfigError(f"`{self.path.name}` ends before row {index}", hint="the file was changed: open it again")

    def records(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with these columns only."""
        for _, row in self._scan():
            yield {name: row[name] for name in columns}

    def _scan(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Where each row starts, and the row; reads the header first."""
        with self.path.open("rb") as file:
            records = self._parsed(file, first=-1)
            _, header = next(records, (0, []))
            twice = sorted({name for name in header if header.count(name) > 1})
            if not header or twice:
                what = f"two columns `{twice[0]}`" if twice else "no header"
                raise ConfigError(
                    f"`{self.path.name}` has {what}", hint="give every column a name of its own in the first line"
                )
            self.columns = tuple(header)
            for index, (start, values) in enumerate(records):
                yield start, self._named(values, index)

    def _parsed(self, file: IO[bytes], first: int) -> Iterator[tuple[int, list[str]]]:
        """Where each record starts from here on, and its values; blank lines do not count."""
        index = first
        position = file.tell()

        def lines() -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                yield line.decode("utf-8-sig" if position == len(line) else "utf-8")

        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        while True:
            start = position
            place = f"row {index} of `{self.path.name}` (counted from 0)" if index >= 0 else f"`{self.path.name}`"
            try:
                values = next(reader, None)
            except UnicodeDecodeError:
                raise _no_utf_8(place) from None
            except csv.Error as error:
                raise ConfigError(
                    f"cannot read {place}: {error}",
                    hint='put a value that holds quotes or line feeds in "..." and write its quotes twice',
                ) from None
            if values is None:
                return
            if values:
                yield start, values
                index += 1

    def _named(self, values: Sequence[str], index: int) -> dict[str, str]:
        if len(values) != len(self.columns):
            raise ConfigError(
                f"row {index} of `{self.path.name}` (counted from 0) has {len(values)} values, and the header has "
                f"{len(self.columns)}",
                hint='write one value for each column, and put a value that holds the delimiter in "..."',
            )
        return dict(zip(self.columns, values, strict=True))


def _no_utf_8(place: str) -> ConfigError:
    return ConfigError(f"{place} is not in UTF-8", hint="save the file as UTF-8")
