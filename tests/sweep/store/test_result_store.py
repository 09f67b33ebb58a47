from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.sweep.a_cell import CELL
from tokenprune.errors import ConfigError
from tokenprune.sweep.store.result_store import SweepStore, read_jsonl, write_json, write_jsonl


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(tmp_path / "sweep")
    made.open_sweep({"models": ["scenes"]}, [CELL])
    return made


def test_life_of_a_cell(store: SweepStore) -> None:
    assert store.state(CELL.id) == "pending"
    store.write_error(CELL, {"outcome": "failed", "message": "boom"})
    assert store.state(CELL.id) == "failed"
    store.write_error(CELL, {"outcome": "refused", "message": "no"})
    assert store.state(CELL.id) == "refused"
    store.begin_cell(CELL)
    assert store.state(CELL.id) == "pending"
    store.write_result(CELL, {"quality": {}})
    assert store.state(CELL.id) == "done"
    assert store.plan() == (CELL,)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"schema": 1, "id": ',
        "[]",
        '{"schema": 99, "id": "ID"}',
        '{"schema": 1, "id": "another"}',
        '{"schema": 1, "id": "ID"}',
        '{"schema": 1, "id": "ID", "cell": {}, "quality": 1}',
        "\x00" * 64,
    ],
)
def test_a_torn_result_counts_as_none(store: SweepStore, content: str) -> None:
    folder = store.begin_cell(CELL)
    (folder / "result.json").write_text(content.replace("ID", CELL.id), encoding="utf-8")
    assert store.state(CELL.id) == "pending"


def test_a_crash_before_the_rename_leaves_no_result(store: SweepStore) -> None:
    folder = store.begin_cell(CELL)
    (folder / ".result.json.1.tmp").write_text('{"schema": 1', encoding="utf-8")
    assert store.state(CELL.id) == "pending"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_text(encoding="utf-8") == '{\n "a": 1\n}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_said(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": 2}])
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"a": 3')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    with path.open("a", encoding="utf-8") as stream:
        stream.write('\n{"a": 4}\n')
    with pytest.raises(ConfigError, match="line 3 is damaged") as caught:
        read_jsonl(path)
    assert caught.value.hint.startswith("run the sweep again")
    path.write_text('{"a": 1}\n[2]\n{"a": 3}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        read_jsonl(path)


def test_the_sweep_keeps_its_id_and_takes_the_new_plan(store: SweepStore) -> None:
    first = store.header()
    store.open_sweep({"models": ["other"]}, [])
    again = store.header()
    assert (again.sweep_id, again.created) == (first.sweep_id, first.created)
    assert (again.config, store.plan()) == ({"models": ["other"]}, ())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "config": []}'])
def test_a_damaged_sweep_file_is_said_so(store: SweepStore, content: str) -> None:
    (store.directory / "sweep.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="damaged or of another version"):
        store.header()


@pytest.mark.parametrize("content", ['{"id": ', "[]", "1", "null", '{"model": 1}'])
def test_a_damaged_plan_is_said_so(store: SweepStore, content: str) -> None:
    (store.directory / "plan.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"plan\.jsonl` is damaged|not a cell of this version") as caught:
        store.plan()
    assert caught.value.hint


def test_not_a_sweep_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a sweep directory"):
        SweepStore(tmp_path).header()


def _try_lock(directory: str, answers: multiprocessing.Queue[str]) -> None:
    try:
        with SweepStore(directory).lock():
            answers.put("locked")
    except ConfigError as error:
        answers.put(error.message)


def test_a_second_process_is_refused(store: SweepStore) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()

    def ask() -> str:
        process = context.Process(target=_try_lock, args=(str(store.directory), answers))
        process.start()
        answer = answers.get(timeout=60)
        process.join()
        return answer

    with store.lock():
        assert "another process (pid" in ask()
    assert ask() == "locked"
