"""Opening a table: one way to the rows of parquet, arrow, JSON lines, CSV, TSV and folders of pictures."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tokenprune.errors import ConfigError
from tokenprune.tasks.table.columnar import ArrowRows, ParquetRows, Row
from tokenprune.tasks.table.lines import DelimitedRows, JsonRows

#: The column of a folder of pictures that names each row's file.
FILE_NAME: Final = "file_name"
_ALLOWED: Final = ".parquet, .arrow, .jsonl, .csv, .tsv, or a folder"
_SHARD: Final = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.\w+")
_PATTERN: Final = re.compile(r"[*?\[]")


class Rows(Protocol):
    """What a format gives."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """One row."""
        ...

    def records(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with these columns only."""
        ...


class Table:
    """Rows with named columns, read from files when they are asked for.

    Args:
        path: What the user gave; messages call the table by its name.
        folder: Paths in cells are relative to it.
        files: The files of the rows, in their order.
        rows: Their rows.
    """

    def __init__(self, path: Path, folder: Path, files: Sequence[Path], rows: Rows) -> None:
        self.path = path
        self.name = path.name or str(path.resolve())
        self.folder = folder
        self.files = tuple(files)
        self._rows = rows
        self._digest = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self._rows.columns

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """Row `index`, counted from 0; of a text file, every value is text or what its JSON says.

        Raises:
            IndexError: There is no such row.
            ConfigError: The file is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a table of {len(self)}")
        return self._rows.row(index)

    def records(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row in order with these columns only, a few rows in memory at a time.

        Raises:
            ConfigError: A file is damaged, or the table lacks one of the columns.
        """
        for column in columns:
            self.check(column)
        return self._rows.records(columns)

    def check(self, column: str, hint: str = "give the name of one of these columns") -> None:
        """Check that the table has a column.

        Args:
            column: Its name.
            hint: What to do if it has none of that name.

        Raises:
            ConfigError: It has no such column.
        """
        if column not in self.columns:
            raise ConfigError(f"`{column}` is no column of `{self.name}`; it has: {', '.join(self.columns)}", hint=hint)

    def digest(self) -> str:
        """Hash of the names, the sizes and the contents of the files; where they lie does not count.

        For a folder of pictures with metadata, the pictures that its rows name count too.
        """
        if not self._digest:
            self._digest = digest_files(self.folder, self.files)
        return self._digest


def open_table(path: str | Path) -> Table:
    """Open a table; its rows are read when they are asked for.

    Args:
        path: One of these:
            - a file: `.parquet`, `.arrow`, `.jsonl`, `.csv`, or `.tsv` (also as VLMEvalKit has them);
            - a folder of `.parquet` files, which are read in the order of their names;
            - a pattern for such files, for example `data/test-*.parquet`;
            - a folder that `datasets` wrote with `save_to_disk`;
            - a folder of pictures with `metadata.csv` or `metadata.jsonl`, whose column `file_name` names the pictures.

    Raises:
        ConfigError: There is no such file, its format is not known, or it is damaged.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _open_folder(place)
    if place.is_file():
        return _open_file(place)
    if _PATTERN.search(place.name) and place.parent.is_dir():
        files = sorted(each for each in place.parent.glob(place.name) if each.is_file())
        if files:
            return _open_shards(place, place.parent, files)
    raise ConfigError(f"no file or folder `{path}`", hint=f"give the path of a table: {_ALLOWED}")


def digest_files(folder: Path, files: Sequence[Path]) -> str:
    """Hash of the names in a folder, the sizes and the contents of files, in their order.

    Raises:
        ConfigError: A file cannot be read.
    """
    whole = hashlib.sha256()
    for path in files:
        name = os.path.relpath(path, folder) if path.is_relative_to(folder) else path.name
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise ConfigError(
                f"cannot read `{path}`: {error.strerror or error}", hint="check that the file is there"
            ) from error
        facts = [name.replace(os.sep, "/"), size, content]
        whole.update(json.dumps(facts).encode() + b"\n")
    return whole.hexdigest()


def _open_file(path: Path) -> Table:
    suffix = path.suffix.lower()
    rows: Rows
    if suffix in (".parquet", ".arrow"):
        return _open_shards(path, path.parent, [path])
    if suffix == ".jsonl":
        rows = JsonRows(path)
    elif suffix in (".csv", ".tsv"):
        rows = DelimitedRows(path, "," if suffix == ".csv" else "\t")
    else:
        raise ConfigError(
            f"`{path.name}` is no table that can be read: its ending is `{path.suffix}`, allowed are {_ALLOWED}",
            hint="save the table as one of these, for example as parquet",
        )
    return Table(path, path.parent, [path], rows)


def _open_folder(path: Path) -> Table:
    if (path / "dataset_dict.json").is_file():
        names = _saved(path / "dataset_dict.json").get("splits") or ["?"]
        raise ConfigError(
            f"`{path.name}` holds several tables: {', '.join(map(str, names))}",
            hint=f"give the folder of one of them, for example `{path / str(names[0])}`",
        )
    if (path / "state.json").is_file():
        named = _saved(path / "state.json").get("_data_files") or []
        files = [path / str(each["filename"]) for each in named]
        for file in files:
            if not file.is_file():
                raise ConfigError(f"`{path.name}` lacks its file `{file.name}`", hint="copy the folder again")
        if files:
            return Table(path, path, files, ArrowRows(files))
    for name in ("metadata.csv", "metadata.jsonl"):
        if (path / name).is_file():
            return _open_pictures(path, path / name)
    files = sorted(path.glob("*.parquet"))
    if files:
        return _open_shards(path, path, files)
    raise ConfigError(
        f"`{path}` holds no table: no *.parquet, no state.json of a saved data set, no metadata.csv or metadata.jsonl",
        hint=f"give the path of a table: {_ALLOWED}",
    )


def _open_shards(path: Path, folder: Path, files: Sequence[Path]) -> Table:
    """Parquet or arrow files that make up one table."""
    endings = sorted({file.suffix.lower() for file in files})
    if endings not in ([".parquet"], [".arrow"]):
        raise ConfigError(
            f"`{path.name}` stands for files with the endings {', '.join(endings)}, allowed are .parquet or .arrow",
            hint="give a pattern for files of one format, for example `data/test-*.parquet`",
        )
    if len(files) > 1:
        _check_shards(path, files)
    return Table(path, folder, files, ParquetRows(files) if endings == [".parquet"] else ArrowRows(files))


def _check_shards(path: Path, files: Sequence[Path]) -> None:
    """Check names such as `test-00000-of-00003.parquet`: one split, and no file missing.

    Raises:
        ConfigError: The files belong to several splits, or one of them is missing.
    """
    found = [match for match in map(_SHARD.fullmatch, (file.name for file in files)) if match]
    splits = sorted({match["split"] for match in found})
    if len(splits) > 1:
        raise ConfigError(
            f"`{path.name}` holds files of several splits: {', '.join(splits)}",
            hint=f"give a pattern for one of them, for example `{files[0].parent / splits[0]}-*.parquet`",
        )
    if found and len(found) == len(files) and len(found) != int(found[0]["count"]):
        raise ConfigError(
            f"`{path.name}` holds {len(found)} of the {int(found[0]['count'])} files of `{splits[0]}`",
            hint="copy the missing files beside the others",
        )


def _open_pictures(folder: Path, metadata: Path) -> Table:
    """A folder of pictures with a file that says more about each."""
    rows: Rows = DelimitedRows(metadata, ",") if metadata.suffix == ".csv" else JsonRows(metadata)
    if FILE_NAME not in rows.columns:
        raise ConfigError(
            f"`{metadata.name}` in `{folder.name}` has no column `{FILE_NAME}`; it has: {', '.join(rows.columns)}",
            hint=f"name each row's picture in a column `{FILE_NAME}`",
        )
    files = {metadata: None}
    for index, record in enumerate(rows.records([FILE_NAME])):
        name = record[FILE_NAME]
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"row {index} of `{metadata.name}` (counted from 0) names no picture: `{FILE_NAME}` is {name!r}",
                hint="write the path of the picture, relative to the folder",
            )
        files[inside(folder, name, f"row {index} of `{metadata.name}` (counted from 0)")] = None
    return Table(folder, folder, list(files), rows)


def inside(folder: Path, name: str, place: str) -> Path:
    """The file that a cell names: a path relative to the table's folder, or an absolute one.

    Args:
        folder: The table's folder.
        name: The path in the cell.
        place: Where the cell is, for the message.

    Raises:
        ConfigError: The relative path leaves the folder.
    """
    if Path(name).is_absolute():
        return Path(name)
    path = os.path.normpath(name)
    if path == os.pardir or path.startswith(os.pardir + os.sep):
        raise ConfigError(
            f"{place}: the path `{name}` leaves the folder of the table; relative paths must stay inside it",
            hint="move the file into the folder of the table, or write its absolute path",
        )
    return folder / path


def _saved(path: Path) -> dict[str, Any]:
    """What `datasets` wrote beside its files."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read `{path}`: {error}", hint="copy the folder again") from None
    return read if isinstance(read, dict) else {}
