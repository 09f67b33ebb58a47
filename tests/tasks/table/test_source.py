"""Tables of every format: rows, order, memory, digests, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tasks.table.making import png, write_csv, write_jsonl, write_parquet, write_saved
from tokenprune.errors import ConfigError
from tokenprune.tasks.table import columnar
from tokenprune.tasks.table.source import Table, open_table

ROWS = [{"question": f'what, is "it" {number}?\nline\ttwo é', "answer": f"a{number}"} for number in range(7)]


def all_rows(table: Table) -> list[dict[str, Any]]:
    return [dict(table.row(index)) for index in range(len(table))]


def made(kind: str, folder: Path) -> Path:
    if kind == "parquet":
        return write_parquet(folder / "t.parquet", ROWS, group=3)
    if kind == "saved":
        return write_saved(folder / "saved", ROWS)
    if kind == "jsonl":
        return write_jsonl(folder / "t.jsonl", ROWS)
    return write_csv(folder / f"t.{kind}", ROWS)


@pytest.mark.parametrize("kind", ["parquet", "saved", "jsonl", "csv", "tsv"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    table = open_table(made(kind, tmp_path))
    assert table.columns == ("question", "answer")
    assert all_rows(table) == ROWS
    assert [table.row(index)["answer"] for index in (6, 0, 3)] == ["a6", "a0", "a3"]
    assert list(table.records(["answer"])) == [{"answer": row["answer"]} for row in ROWS]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            table.row(index)


@pytest.mark.parametrize("kind", ["parquet", "saved", "jsonl", "csv", "tsv"])
def test_the_digest_follows_the_contents_and_not_the_place(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("one", "two", "changed", "turned"):
        (tmp_path / name).mkdir()
    first, second = (open_table(made(kind, tmp_path / name)).digest() for name in ("one", "two"))
    assert first == second
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [*ROWS[:-1], {**ROWS[-1], "answer": "x6"}])
    changed = open_table(made(kind, tmp_path / "changed")).digest()
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[__name__], "ROWS", ROWS[::-1])
    turned = open_table(made(kind, tmp_path / "turned")).digest()
    assert len({first, changed, turned}) == 3


def test_only_the_row_groups_that_are_needed_are_read_each_once(tmp_path: Path, monkeypatch: Any) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"n": number} for number in range(12)], group=3)
    read: list[int] = []
    plain = pq.ParquetFile.read_row_group

    def counted(self: Any, number: int) -> Any:
        read.append(number)
        return plain(self, number)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    table = open_table(path)
    assert len(table) == 12
    assert read == []
    assert [row["n"] for row in all_rows(table)] == list(range(12))
    assert read == [0, 1, 2, 3]
    assert table.row(1)["n"] == 1
    assert table.row(2)["n"] == 2
    assert read == [0, 1, 2, 3, 0]
    held: Any = table._rows
    assert held._rows.num_rows == 3


def test_a_large_row_group_is_never_whole_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    rows = [{"n": number, "image": bytes([number % 256]) * 500} for number in range(300)]
    path = write_parquet(tmp_path / "t.parquet", rows, group=200)
    monkeypatch.setattr(columnar, "LARGEST_GROUP", 1000)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    table = open_table(path)
    held: Any = table._rows
    for index in [*range(300), 5, 4, 250, 3]:
        assert table.row(index) == rows[index]
        assert held._rows.num_rows <= 64


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_may_have_dots_and_lists_and_nothing_in_them(kind: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": {"b": 1}, "a.b": "x", "c/d": ["l", "m"]}, {"a": None, "a.b": None, "c/d": []}]
    folder = tmp_path / "t"
    table = open_table(write_saved(folder, rows) if kind == "saved" else write_parquet(tmp_path / "t.parquet", rows))
    assert all_rows(table) == rows
    for column in table.columns:
        assert list(table.records([column])) == [{column: row[column]} for row in rows]
    with pytest.raises(ConfigError, match="`b` is no column of `t"):
        table.records(["b"])


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write_parquet(tmp_path / f"test-{number:05}-of-00003.parquet", [{"n": number * 10 + each} for each in range(3)])
    expected = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert [row["n"] for row in all_rows(open_table(tmp_path))] == expected
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [{"n": 99}])
    assert [row["n"] for row in all_rows(open_table(tmp_path / "test-*.parquet"))] == expected
    with pytest.raises(ConfigError, match="holds files of several splits: test, train"):
        open_table(tmp_path)
    (tmp_path / "test-00001-of-00003.parquet").unlink()
    with pytest.raises(ConfigError, match=r"`test-\*\.parquet` holds 2 of the 3 files of `test`"):
        open_table(tmp_path / "test-*.parquet")


def test_a_folder_of_pictures_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["a.png", "sub/b.png"]):
        (tmp_path / name).write_bytes(png(number))
    rows = [{"file_name": "a.png", "question": "q"}, {"file_name": "sub/b.png", "question": "r"}]
    write_csv(tmp_path / "metadata.csv", rows)
    table = open_table(tmp_path)
    assert all_rows(table) == rows
    before = table.digest()
    (tmp_path / "sub/b.png").write_bytes(png(5))
    assert open_table(tmp_path).digest() != before
    (tmp_path / "metadata.csv").unlink()
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    assert all_rows(open_table(tmp_path)) == rows
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "../a.png"}])
    with pytest.raises(ConfigError, match=r"row 0 of `metadata.jsonl` .*: the path `../a.png` leaves the folder"):
        open_table(tmp_path)
    write_jsonl(tmp_path / "metadata.jsonl", [{"name": "a.png"}])
    with pytest.raises(ConfigError, match="has no column `file_name`; it has: name"):
        open_table(tmp_path)


def test_json_lines_may_lack_keys_and_have_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": [2]}')
    assert all_rows(open_table(path)) == [{"a": 1, "b": None}, {"a": None, "b": [2]}]


def test_values_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    rows = [{"index": "0", "image": "x" * 300_000}, {"index": "1", "image": ""}]
    assert all_rows(open_table(write_csv(tmp_path / "t.tsv", rows))) == rows
    path = tmp_path / "marked.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4")
    assert all_rows(open_table(path)) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"x", "`t.xlsx` is no table that can be read: its ending is `.xlsx`, allowed are .parquet"),
        ("t.parquet", b"nonsense", "cannot read `t.parquet` as parquet: "),
        ("t.arrow", b"nonsense and more", "cannot read `t.arrow` as arrow: "),
        ("t.jsonl", b'{"a": 1}\n{"a": ', "row 1 of `t.jsonl` (counted from 0) is no JSON: "),
        ("t.jsonl", b"[1]", "row 0 of `t.jsonl` (counted from 0) is a JSON list, not an object"),
        ("t.csv", b"a,a\n1,2", "`t.csv` has two columns `a`"),
        ("t.csv", b"", "`t.csv` has no header"),
        ("t.csv", b"a,b\n1,2\n1,2,3", "row 1 of `t.csv` (counted from 0) has 3 values, and the header has 2"),
        ("t.tsv", b'a\tb\n1\t"2', "cannot read row 0 of `t.tsv` (counted from 0): unexpected end of data"),
        ("t.csv", b"a\n\xff", "row 0 of `t.csv` (counted from 0) is not in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_table(tmp_path / name)
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_folders_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder"):
        open_table(tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="holds no table"):
        open_table(tmp_path)
    folder = write_saved(tmp_path / "saved", ROWS)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ConfigError, match=r"`saved` lacks its file `data-00001-of-00002.arrow`"):
        open_table(folder)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ConfigError, match="holds several tables: train, test"):
        open_table(tmp_path)
    (tmp_path / "shards").mkdir()
    write_parquet(tmp_path / "shards/a.parquet", [{"a": 1}])
    write_parquet(tmp_path / "shards/b.parquet", [{"b": 1}])
    with pytest.raises(ConfigError, match=r"`b.parquet` has the columns b, and `a.parquet` has a"):
        open_table(tmp_path / "shards")


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, tokenprune.tasks.table.task; print({'pyarrow', 'torch', 'datasets'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
