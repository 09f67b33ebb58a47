"""A user's own table as a task: options, prompts, answers, scores, messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.table.making import in_base64, pixels, png, write_csv, write_jsonl, write_parquet, write_saved
from tokenprune.errors import ConfigError
from tokenprune.tasks.base import Task
from tokenprune.tasks.table import task as module
from tokenprune.tasks.table.task import TableTask

LETTER = "Answer with the option's letter from the given choices directly."


def shares(prediction: str, answers: Sequence[str]) -> float:
    return answers.count(prediction) / len(answers)


def first_letter(prediction: str, letters: str, options: Sequence[str]) -> str | None:
    return prediction[:1] if prediction[:1] in [*letters] else None


@pytest.fixture(autouse=True)
def _own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*module.METRICS]:
        monkeypatch.setitem(module.METRICS, name, f"{__name__}:shares")
    monkeypatch.setitem(module.METRICS, "choice", f"{__name__}:first_letter")


def test_a_parquet_file_with_pictures(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": png(0), "path": None}, "question": "colour?", "answer": "red", "kind": "colour"},
        {"image": {"bytes": png(1), "path": None}, "question": "how many?", "answer": "2", "kind": "count"},
        {"image": None, "question": "how many?", "answer": "3", "kind": "count"},
    ]
    task = TableTask(write_parquet(tmp_path / "my.parquet", rows), family="kind", short=True)
    assert isinstance(task, Task)
    assert (task.name, task.version, task.split) == ("table", "table-1.0", "test")
    assert (len(task), task.families, task.max_new_tokens) == (3, ("colour", "count"), 16)
    sample = task[1]
    assert (sample.id, sample.answer, sample.family) == ("table-1.0/test/1", "2", "count")
    assert sample.question == "how many?\nAnswer the question using a single word or phrase."
    assert [pixels(each) for each in sample.images] == [pixels(1)]
    assert task[2].images == ()
    assert (task.score("2", sample), task.score("3", sample)) == (1.0, 0.0)
    with pytest.raises(IndexError):
        task[3]
    assert TableTask(tmp_path / "my.parquet", image=None)[1].images == ()


def test_a_saved_data_set_with_several_pictures_and_answers(tmp_path: Path) -> None:
    rows = [{"pics": [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}], "more": png(2),
             "q": "what?", "answers": [{"answer": "cola"}, {"answer": "coke"}, {"answer": "coke"}], "key": number}
            for number in range(3)]  # fmt: skip
    task = TableTask(
        write_saved(tmp_path / "saved", rows),
        image=["pics", "more"], question="q", answer="answers", id="key", metric="vqa", split="val",
    )  # fmt: skip
    sample = task[2]
    assert (sample.id, sample.answer, sample.question) == ("2", "coke", "what?")
    assert sample.facts["answers"] == ("cola", "coke", "coke")
    assert [pixels(each) for each in sample.images] == [pixels(0), pixels(1), pixels(2)]
    assert task.score("coke", sample) == pytest.approx(2 / 3)


def test_vlmevalkits_file_with_shared_pictures_and_columns_of_choices(tmp_path: Path) -> None:
    rows = [
        {"index": "0", "image": in_base64(0), "question": "q0", "A": "red", "B": "blue", "C": "", "answer": "B"},
        {"index": "1000000", "image": "0", "question": "q1", "A": "x", "B": "y", "C": "z", "answer": "C"},
        {"index": "2", "image": repr([in_base64(1), in_base64(2)]), "question": "q2", "A": "x", "B": "y", "C": "nan",
         "answer": "a"},
    ]  # fmt: skip
    task = TableTask(write_csv(tmp_path / "My.tsv", rows), choices=["A", "B", "C"], id="index")
    assert task[0].question == f"q0\nA. red\nB. blue\n{LETTER}"
    assert [pixels(each) for each in task[1].images] == [pixels(0)]
    assert [pixels(each) for each in task[2].images] == [pixels(1), pixels(2)]
    assert [task[index].answer for index in range(3)] == ["B", "C", "A"]
    assert (task[0].facts["letters"], task[0].facts["choices"]) == ("AB", ("red", "blue"))
    assert (task.metric, task.max_new_tokens, task[1].id) == ("choice", 16, "1000000")
    assert [task.score(said, task[0]) for said in ("B", "A", "C", "none")] == [1.0, 0.0, 0.0, 0.0]
    assert len(task.digest()) == 64


def test_answers_as_lists_in_text(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": each} for each in ["['a', 'b']", '["c"]', "[2010, 2014]", "[a, b]"]]
    task = TableTask(write_csv(tmp_path / "t.csv", rows), metric="anls")
    said = [task[index].facts["answers"] for index in range(4)]
    assert said == [("a", "b"), ("c",), ("[2010, 2014]",), ("[a, b]",)]


@pytest.mark.parametrize(
    ("answer", "choices", "answer_is", "letter"),
    [
        ("B", ["red", "blue"], None, "B"),
        ("b", ["red", "blue"], None, "B"),
        (1, ["red", "blue"], None, "B"),
        (1.0, ["red", "blue"], None, "B"),
        ("1", ["red", "blue"], None, "B"),
        ("Blue ", ["red", "blue"], None, "B"),
        ("blue", "['red', 'blue']", None, "B"),
        ("5", ["3", "5"], None, "B"),
        ("1", ["0", "1"], None, "B"),
        ("a", ["A", "a"], "text", "B"),
        ("1", ["1", "2"], "index", "B"),
        ("2", [1, 2], "text", "B"),
        ("B", ["A", "B"], None, "B"),
        (["blue"], ["red", "blue"], None, "B"),
    ],
)
def test_the_right_option_by_letter_number_or_text(
    answer: Any, choices: Any, answer_is: str | None, letter: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": answer, "choices": choices}])
    assert TableTask(path, choices="choices", answer_is=answer_is)[0].answer == letter


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        ("1", ["1", "2"], "`1` names different options: B as index and A as text; the options are: A. 1, B. 2"),
        ("b", ["b", "a"], "`b` names different options: B as letter and A as text"),
        ("C", ["red", "blue"], "`C` names no option by its letter, its number from 0 or its text"),
        (-1, ["red", "blue"], "`-1` names no option"),
        ("red", ["red", "red"], "`red` names no option by its letter, its number from 0 or its text, or several"),
        (["A", "B"], ["red", "blue"], "a choice has one right answer, got A, B"),
        ("", ["red", "blue"], "the cell is empty"),
        ("A", "red, blue", "the choices must be a list, got 'red, blue'"),
        ("A", [], "there are 0 choices, allowed are 1 to 26"),
    ],
)
def test_an_answer_with_two_meanings_or_none_is_refused(
    answer: Any, choices: Any, message: str, tmp_path: Path
) -> None:
    rows = [
        {"question": "q", "answer": "A", "choices": ["x", "y"]},
        {"question": "q", "answer": answer, "choices": choices},
    ]
    with pytest.raises(ConfigError) as caught:
        TableTask(write_jsonl(tmp_path / "t.jsonl", rows), choices="choices")
    assert caught.value.message.startswith("row 1 (counted from 0), column `")
    assert message in caught.value.message
    assert caught.value.hint


def test_a_choice_whose_options_are_in_the_question(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"question": "q Options: A: x, B: y", "answer": "B"}])
    task = TableTask(path, metric="choice")
    assert task[0].question == f"q Options: A: x, B: y\n{LETTER}"
    assert (task[0].facts["letters"], task[0].answer) == ("ABCDEFGH", "B")


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"question": "a {b} c", "answer": "x", "c": ["x", "{y}"]}])
    assert TableTask(path)[0].question == "a {b} c"
    assert TableTask(path, prompt="{{Q}} {question}!")[0].question == "{Q} a {b} c!"
    task = TableTask(path, choices="c", prompt="{question}\n{choices}\nLetter:")
    assert task[0].question == "a {b} c\nA. x\nB. {y}\nLetter:"


def test_the_digest_follows_options_pictures_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    rows = [{"image": "a.png", "question": "q", "answer": "x"}, {"image": "a.png", "question": "r", "answer": "y"}]
    path = write_csv(tmp_path / "t.csv", rows)
    first = TableTask(path).digest()
    assert TableTask(str(path)).digest() == first
    others = [TableTask(path, metric="anls"), TableTask(path, short=True), TableTask(path, split="val"),
              TableTask(path, image=None)]  # fmt: skip
    digests = {first, *(task.digest() for task in others)}
    (tmp_path / "a.png").write_bytes(png(1))
    digests.add(TableTask(path).digest())
    write_csv(path, rows[::-1])
    digests.add(TableTask(path).digest())
    assert len(digests) == 7
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigError, match=r"row 0 .*, column `image` of `t.csv`: `a.png` is no file"):
        TableTask(path).digest()


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    write_csv(tmp_path / "metadata.csv", [{"file_name": "a.png", "question": "q", "answer": "x"}])
    task = TableTask(tmp_path)
    assert [pixels(each) for each in task[0].images] == [pixels(3)]
    before = task.digest()
    (tmp_path / "a.png").write_bytes(png(4))
    assert TableTask(tmp_path).digest() != before


def test_a_broken_picture_is_said_with_file_row_and_column(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": each, "path": None}, "question": "q", "answer": "x"} for each in (png(), png()[:60])]
    task = TableTask(write_parquet(tmp_path / "my.parquet", rows))
    assert len(task[0].images) == 1
    with pytest.raises(ConfigError, match=r"row 1 \(counted from 0\), column `image` of `my.parquet`: cannot read"):
        task[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "img"}, "`img` is no column of `my.parquet`; it has: image, question, answer, same"),
        ({"question": "q"}, "`q` is no column of `my.parquet`; it has: "),
        ({"answer": "ansver"}, "`ansver` is no column of `my.parquet`; it has: "),
        ({"choices": ["A", "same"]}, "`A` is no column of `my.parquet`; it has: "),
        ({"choices": []}, "`choices` must be a column or a list of different columns, got []"),
        ({"question": 3}, "`question` must be the name of a column, got 3"),
        ({"id": "same"}, "row 1 (counted from 0), column `same` of `my.parquet`: row 0 has the same id `s`"),
        (
            {"metric": "exakt"},
            "unknown metric `exakt`, allowed are exact, contains, choice, vqa, anls, relaxed, number",
        ),
        ({"metric": "exact", "choices": "same"}, "`choices` are scored by the metric `choice`, got `exact`"),
        ({"answer_is": "text"}, "`answer_is` is 'text', allowed are letter, index, text, for the metric `choice`"),
        ({"short": 1}, "`short` must be true or false, got 1"),
        ({"short": True, "prompt": "{question}"}, "`short` has no effect: `prompt` says what is asked"),
        ({"short": True, "metric": "choice"}, "`short` has no effect: a choice asks for a letter"),
        ({"prompt": "what?"}, "`prompt` has no `{question}`"),
        ({"prompt": "{question} {hint}"}, "`prompt` has the field `{hint}`, allowed are {question} and {choices}"),
        ({"prompt": "{question.x}"}, "`prompt` has the field `{question.x}`"),
        ({"prompt": "{question"}, "`prompt` is no template: "),
        ({"prompt": "{question} {choices}"}, "`prompt` has `{choices}`, and the task has none"),
        ({"prompt": "{question}", "choices": "same"}, "`prompt` has no `{choices}`, and the task has choices"),
        ({"split": ""}, "`split` must be a name, got ''"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number of at least 1, got 0"),
        ({"table": 5}, "`table` must be a path, got 5"),
    ],
)
def test_wrong_options_are_said_in_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"image": png(), "question": "q", "answer": "x", "same": "s"}
    path = write_parquet(tmp_path / "my.parquet", [row, row])
    with pytest.raises(ConfigError) as caught:
        TableTask(**{"table": path, **options})
    assert caught.value.message.startswith(message)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_rows_that_cannot_be_used_are_said_when_the_task_is_made(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": "x"}, {"question": "q", "answer": None}])
    with pytest.raises(ConfigError, match=r"row 1 \(counted from 0\), column `answer` of `t.jsonl`: the cell is empty"):
        TableTask(path)
    gap = write_csv(tmp_path / "t.csv", [{"question": "q", "answer": "A", "A": "x", "B": "", "C": "z"}])
    with pytest.raises(ConfigError, match=r"column `B` of `t.csv`: the cell is empty, and `C` after it is not"):
        TableTask(gap, choices=["A", "B", "C"])
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"`none.jsonl` has no rows"):
        TableTask(tmp_path / "none.jsonl")
