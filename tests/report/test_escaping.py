"""What other people wrote is shown as it is: in Markdown, on a terminal, in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.cli.commands import Commands
from tests.sweep.fixtures import FinishedSweep
from tokenprune.report import markdown_report, markdown_table
from tokenprune.report.render.escaping import csv_text, markdown_grid, markdown_sentence, markdown_text
from tokenprune.tracking.views import note

LABELS = [
    "a|b",
    "two\nlines",
    "a `tick`",
    "<b>bold</b>",
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![picture](http://evil.example/p.png)",
    "*stars* and **more**",
    "_under_ and in_side",
    "~~gone~~",
    "back\\slash \\| pipe",
    "&lt; &amp; &#60; & alone",
    "fastv[layer=2]",
    "[bold]red[/bold] :smile:",
    "=1+2",
]
RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown(markdown: str) -> str:
    """The plain text that a browser shows of inline Markdown, and nothing if anything in it is markup."""
    (token,) = [token for token in RENDER.parse(markdown) if token.type == "inline"]
    assert {child.type for child in token.children or ()} <= {"text", "text_special"}, token.children
    return "".join(child.content for child in token.children or ())


@pytest.mark.parametrize("label", LABELS)
def test_a_text_is_shown_as_it_is(label: str) -> None:
    assert shown(markdown_text(label)) == " ".join(label.splitlines())


def test_names_stay_readable() -> None:
    for name in ("iwp-0.7", "fastv[layer=2,published=True]", "my_pruner", "llava-hf/llava-1.5-7b-hf", "x none", "R&D"):
        assert markdown_text(name) == name


def test_a_sentence_keeps_its_code_and_nothing_else() -> None:
    (token,) = [token for token in RENDER.parse(markdown_sentence("`a|b*` <b> *x*\n[c](d)")) if token.type == "inline"]
    assert [(child.type, child.content) for child in token.children or () if child.type == "code_inline"] == [
        ("code_inline", "a|b*")
    ]
    assert {child.type for child in token.children or ()} <= {"text", "text_special", "code_inline"}


def test_a_cell_does_not_end_its_row() -> None:
    grid = markdown_grid(["name", "n"], [["`a|b`", "1"], [markdown_text("c\\|d\ne"), "2"]], numbers=["n"])
    cells = [token.children for token in RENDER.parse(grid) if token.type == "inline"]
    texts = ["".join(child.content for child in children or ()) for children in cells]
    assert texts == ["name", "n", "a|b", "1", "c\\|d e", "2"]
    assert grid.splitlines()[1] == "| --- | --: |"


@pytest.fixture
def relabelled(finished: FinishedSweep, tmp_path: Path) -> Path:
    """A sweep whose pruners have the labels, as somebody could write them into its files."""
    copy = finished.copy(tmp_path / "demo")
    path = copy / "plan.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = dict(zip(dict.fromkeys(row["label"] for row in rows if row["pruner"] != "none"), LABELS, strict=False))
    for row in rows:
        row["label"] = names.get(row["label"], row["label"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return copy


def test_labels_break_no_table_of_a_report(relabelled: Path) -> None:
    for text in (markdown_table(relabelled), markdown_report(relabelled)):
        tokens = RENDER.parse(text)
        assert not [token for token in tokens if token.type == "html_block"]
        for token in tokens:
            assert not {child.type for child in token.children or ()} & {"html_inline", "link_open", "image"}
        tables = [block for block in text.split("\n\n") if block.startswith("| ")]
        rows = [RENDER.parse(table) for table in tables]
        assert [sum(token.type == "tr_open" for token in found) for found in rows] == [
            len(table.splitlines()) - 1 for table in tables
        ]
        cells = [token.children or () for found in rows for token in found if token.type == "inline"]
        texts = {"".join(child.content for child in children) for children in cells}
        assert {"a|b", "two lines", "a `tick`", "<b>bold</b>"} <= texts


def test_labels_are_no_markup_on_a_terminal(
    relabelled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = relabelled / "plan.jsonl"
    escape = "\x1b[31mred\x1b]8;;http://evil.example"
    text = path.read_text(encoding="utf-8").replace(json.dumps("a|b")[1:-1], "[bold]x[/bold] :smile:")
    path.write_text(text.replace(json.dumps("<b>bold</b>")[1:-1], json.dumps(escape)[1:-1]), encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")
    ran = Commands(capsys)("report", str(relabelled))
    assert ran.code == 0, ran.err
    assert "[bold]x[/bold] :smile:" in ran.out
    assert "\x1b" not in ran.out + ran.err


def test_links_of_an_experiment_lead_where_they_should() -> None:
    titles = {"Compare answers: a](http://evil.example)": "#/one", "Compare answers: b": "#/two", "Report": "#/three"}
    links = [
        token.attrs["href"]
        for block in RENDER.parse(note("my *sweep*", titles, ""))
        for token in block.children or ()
        if token.type == "link_open"
    ]
    assert links == ["/#/one", "/#/three", "/#/one", "/#/two"]


@pytest.mark.parametrize("text", ["=1+2", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\n=1", '=HYPERLINK("x")'])
def test_a_spreadsheet_computes_nothing(text: str) -> None:
    (_, row) = csv.reader(io.StringIO(csv_text(["a", "b"], [[text, "-1.5"]]), newline=""))
    assert row == [f"'{text}", "-1.5"]


def test_figures_and_plain_texts_are_written_as_they_are() -> None:
    values = [-1.5, 3, None, True, "-1.5", "+2", "-", "none", "a,b", ""]
    (_, row) = csv.reader(io.StringIO(csv_text(["x"] * len(values), [values])))
    assert csv_text(["x"], [["a\rb\r\nc"]]) == 'x\n"a\nb\nc"\n'
    assert row == ["-1.5", "3", "", "True", "-1.5", "+2", "-", "none", "a,b", ""]
