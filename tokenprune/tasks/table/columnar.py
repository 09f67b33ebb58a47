"""Rows of parquet and arrow files, read when they are asked for."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tokenprune.errors import ConfigError

Row = Mapping[str, Any]

#: A row group of more bytes than this is not read whole, but a few rows at a time.
LARGEST_GROUP: Final = 256 * 2**20
#: Rows that lie in memory at once while all rows of some columns are read.
_BATCH: Final = 64


class ParquetRows:
    """The rows of parquet files, in the order of the files.

    Only the row group that was read last lies in memory. A row group above `LARGEST_GROUP` is read in small batches:
    going forward through it costs one pass, going back starts it again. A file's pages are the least that can be read;
    pyarrow writes pages of 1024 rows, so two or three thousand pictures of such a file can be in memory.

    Args:
        files: The files.

    Raises:
        ConfigError: A file is damaged or no parquet file, or the files have different columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._groups: list[tuple[Path, int]] = []
        counts: list[int] = []
        columns: list[tuple[str, ...]] = []
        for path in self.files:
            with _readable(path, "parquet"), _parquet(path) as file:
                columns.append(tuple(file.schema_arrow.names))
                for number in range(file.num_row_groups):
                    self._groups.append((path, number))
                    counts.append(file.metadata.row_group(number).num_rows)
        self.columns = _same(self.files, columns)
        self._ends = list(itertools.accumulate(counts))
        self._group = -1
        self._first = 0
        self._rows: Any = None
        self._batches: Iterator[Any] = iter(())
        self._leave: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> Row:
        """One row; its row group stays in memory until a row of another one is asked for."""
        group, place = _find(self._ends, index)
        path, number = self._groups[group]
        with _readable(path, "parquet"):
            if group != self._group or place < self._first:
                self._open(group, path, number)
            while place >= self._first + self._rows.num_rows:
                self._first += self._rows.num_rows
                self._rows = next(self._batches)
            row: Row = self._rows.slice(place - self._first, 1).to_pylist()[0]
        return row

    def records(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with these columns only; the others are not read from the disk."""
        for path in self.files:
            with _readable(path, "parquet"), _parquet(path) as file:
                for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns)):
                    yield from batch.select(list(columns)).to_pylist()

    def _open(self, group: int, path: Path, number: int) -> None:
        """Put the first rows of a row group in the place of the last ones: all of them, or a batch of a large group."""
        self._leave()
        self._group, self._first, self._rows, self._batches = -1, 0, None, iter(())
        file = _parquet(path)
        self._leave = file.close
        facts = file.metadata.row_group(number)
        if facts.total_byte_size <= LARGEST_GROUP:
            self._rows = file.read_row_group(number)
            file.close()
        else:
            size = max(1, facts.num_rows * LARGEST_GROUP // facts.total_byte_size)
            self._batches = file.iter_batches(batch_size=min(size, _BATCH), row_groups=[number])
            self._rows = next(self._batches)
        self._group = group


class ArrowRows:
    """The rows of arrow files; the files are mapped, so a row is read from the disk when it is asked for.

    Args:
        files: The files, in the stream format (as `datasets` saves them) or in the file format.

    Raises:
        ConfigError: A file is damaged or no arrow file, or the files have different columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._batches: list[tuple[Path, Any]] = []
        columns: list[tuple[str, ...]] = []
        for path in self.files:
            with _readable(path, "arrow"):
                table = _mapped(path)
                columns.append(tuple(table.schema.names))
                self._batches += [(path, batch) for batch in table.to_batches() if batch.num_rows]
        self.columns = _same(self.files, columns)
        self._ends = list(itertools.accumulate(batch.num_rows for _, batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> Row:
        """One row."""
        number, place = _find(self._ends, index)
        path, batch = self._batches[number]
        with _readable(path, "arrow"):
            row: Row = batch.slice(place, 1).to_pylist()[0]
        return row

    def records(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with these columns only."""
        for path, batch in self._batches:
            with _readable(path, "arrow"):
                chosen = batch.select(list(columns))
                for start in range(0, chosen.num_rows, _BATCH):
                    yield from chosen.slice(start, _BATCH).to_pylist()


def _parquet(path: Path) -> Any:
    """An open parquet file that reads its columns page by page."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)


def _mapped(path: Path) -> Any:
    """A mapped arrow file; its values stay on the disk until they are used."""
    import pyarrow.ipc

    source = pyarrow.memory_map(str(path))
    stream = source.read(6) != b"ARROW1"
    source.seek(0)
    return pyarrow.ipc.open_stream(source).read_all() if stream else pyarrow.ipc.open_file(source).read_all()


def _find(ends: Sequence[int], index: int) -> tuple[int, int]:
    """The part that holds a row, and the row's place in it."""
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


def _same(files: Sequence[Path], columns: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    for path, own in zip(files, columns, strict=True):
        if own != columns[0]:
            raise ConfigError(
                f"`{path.name}` has the columns {', '.join(own)}, and `{files[0].name}` has {', '.join(columns[0])}",
                hint="give files with the same columns in the same order, or one of them",
            )
        twice = sorted({name for name in own if own.count(name) > 1})
        if twice:
            raise ConfigError(f"`{path.name}` has two columns `{twice[0]}`", hint="rename one of them")
    return columns[0]


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Says which file is damaged."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot read `{path.name}` as {kind}: {reason}", hint="write the file again, or copy it again"
        ) from error
