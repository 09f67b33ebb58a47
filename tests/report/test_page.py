"""The page that can be mailed: what it holds, and that it holds it itself."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from tests.sweep.fixtures import FinishedSweep
from tokenprune.report import leaderboard
from tokenprune.report.data.cases import Cases, cases_of, evenly_spaced, problems_of
from tokenprune.report.data.rows import BudgetTable, PrunerRow
from tokenprune.report.render.kept_tokens import MAX_SIDE, data_url, kept_tokens
from tokenprune.report.render.page import html_page, write_report
from tokenprune.report.render.plots import AVERAGE, AXES, BUDGET, REFERENCE_COLOUR, draw, pruner_colours, sweep_colours
from tokenprune.report.stats.intervals import Interval
from tokenprune.report.stats.scores import HardSubset
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.result_store import StorageError, write_jsonl
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep


class Reader(HTMLParser):
    """Scripts by id, addresses that the page would load, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.loaded: list[str] = []
        self.open: list[str] = []
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag == "script":
            self._script = facts.get("id") or "code"
        if tag in ("script", "img", "link", "iframe"):
            self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def json(self, name: str) -> Any:
        return json.loads(self.scripts[f"data-{name}"])


@pytest.fixture(scope="module")
def data(finished: FinishedSweep) -> SweepData:
    return read_sweep(finished.directory)


@pytest.fixture(scope="module")
def html(data: SweepData) -> str:
    return html_page(data)


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    return Reader(html)


def test_nothing_is_loaded_from_elsewhere(page: Reader, html: str) -> None:
    assert page.loaded == []
    assert page.open == []  # every element is closed
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?http", html)


def test_the_page_draws_by_itself_and_is_small(page: Reader, html: str) -> None:
    assert set(page.scripts) == {"data-kept", "data-colours", "data-cases", "code"}  # no library
    assert len(html) < 1e6


def test_plots_are_the_pareto_plots_and_more_on_a_click(html: str) -> None:
    titles = re.findall(r'<svg [^>]*aria-label="([^"]*)"', html)
    assert titles[0] == "accuracy and visual tokens, mean over decoder layers"
    assert titles[1].startswith("accuracy and prefill time")
    assert len(titles) == len(AXES)
    for plot in re.findall(r"<svg .*?</svg>", html, re.DOTALL)[:2]:
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot)
        assert {"Pareto front", "none", "random", "grid", "first"} <= set(texts)  # the legend
        assert re.search(r"<title>first 50%[^<]*\n[^<]*\naccuracy: [0-9.]+ %", plot)  # of a dot, under the mouse
        assert set(re.findall(r'data-legend="([^"]*)"', plot)) <= set(re.findall(r'data-series="([^"]*)"', plot))
    names = re.findall(r' id="([^"]*)"', html)
    assert len(names) == len(set(names))


def test_the_front_is_that_of_the_tables(finished: FinishedSweep) -> None:
    board = leaderboard(finished.directory)
    (front,) = [front for front in board.summaries[0].fronts if front.cost == "layer_average"]
    colours = sweep_colours(read_sweep(finished.directory))
    with_front, without = draw(board.tables, AVERAGE, colours, front.points), draw(board.tables, AVERAGE, colours)
    assert with_front is not None
    assert without is not None
    (line,) = [line for line in with_front.figure.axes[0].lines if line.get_label() == "Pareto front"]
    assert list(line.get_xdata()) == [point.cost for point in front.points]
    assert list(line.get_ydata()) == [point.accuracy for point in front.points]
    assert "Pareto front" not in without.svg()


def test_a_plot_has_intervals_and_a_logarithmic_axis() -> None:
    """By a table of its own: the toy task has too few pictures for an interval."""
    rows = tuple(
        PrunerRow(None, label, label, "", "done", accuracy=Interval(mean, low, high), tokens={"final": tokens})
        for label, mean, low, high, tokens in (("none", 0.9, 0.8, 0.95, 256.0), ("one", 0.5, 0.4, 0.7, 16.0))
    )
    tables = [BudgetTable("m", "t", budget, "kept", rows, HardSubset(0), None) for budget in ("4", "25%")]
    plot = draw(tables, BUDGET, {"none": "#444444", "one": "#1f77b4"})
    assert plot is not None
    (axes,) = plot.figure.axes
    assert axes.get_xscale() == "log"
    bars = [[y for _, y in part] for found in axes.collections for part in found.get_segments()]
    assert bars == [pytest.approx([0.8, 0.95]), pytest.approx([0.4, 0.7]), pytest.approx([0.4, 0.7])]
    assert "accuracy: 50.0 % [40.0, 70.0]" in plot.svg()


def test_plots_of_two_tasks_share_no_id() -> None:
    def names(task: str) -> set[str]:
        row = PrunerRow(None, "one", "one", "", "done", accuracy=Interval(0.5, 0.4, 0.6), tokens={"final": 16.0})
        plot = draw([BudgetTable("m", task, "4", "kept", (row,), HardSubset(0), None)], BUDGET, {"one": "#1f77b4"})
        assert plot is not None
        return set(re.findall(r' id="([^"]*)"', plot.svg()))

    assert names("first")
    assert not names("first") & names("second")


def test_labels_cannot_break_a_plot() -> None:
    labels = ["$x^$", "_hidden", "<script>alert(1)</script>", "a&b", "two\nlines", "\x1b[31mred", '"quoted"']
    rows = tuple(
        PrunerRow(None, label, label, "", "done", accuracy=Interval(0.5, 0.4, 0.6), tokens={"final": 16.0 + place})
        for place, label in enumerate(labels)
    )
    table = BudgetTable("m$_", "t", "4", "kept", rows, HardSubset(0), None)
    plot = draw([table], BUDGET, dict.fromkeys(labels, "#1f77b4"))
    assert plot is not None
    assert plot.png().startswith(b"\x89PNG")
    svg = plot.svg()
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]
    assert {*labels[:4], "two lines", "\ufffd[31mred", labels[-1]} <= set(texts)
    assert "<script" not in svg


def test_the_heat_map_shows_every_pruner_and_family(finished: FinishedSweep, html: str) -> None:
    board = leaderboard(finished.directory)
    maps = re.findall(
        r"<details( open)?><summary>[^<]*</summary>\s*<div class=wide><table class=\"board heat\">(.*?)</table>",
        html,
        re.DOTALL,
    )
    assert [bool(opened) for opened, _ in maps] == [False, True]
    for (_, text), table in zip(maps, board.tables, strict=True):
        families = re.findall(r"<th>([^<]*)</th>", text)[1:]
        lines = re.findall(r"<tr><td>[^<]*</td><td class=name>([^<]*)</td>(.*?)</tr>", text, re.DOTALL)
        rows = [row for row in table.rows if row.families]
        assert [label for label, _ in lines] == [row.label for row in rows]
        for (_, cells), row in zip(lines, rows, strict=True):
            assert row.families is not None
            shares = [float(share) for share in re.findall(r'style="--share:([0-9.]+)"', cells)]
            assert shares == [pytest.approx(row.families[name].accuracy.mean, abs=1e-3) for name in families]
            shown = re.findall(r">([0-9.]+)\*? <small>", cells)
            assert shown == [f"{100 * row.families[name].accuracy.mean:.1f}" for name in families]


def test_lost_questions_are_what_the_unpruned_model_answers(finished: FinishedSweep, data: SweepData) -> None:
    store = SweepStore(finished.directory)
    (cases,) = cases_of(data)
    cells = {(cell.label, cell.budget_label, cell.seed): cell for cell in store.plan()}
    base = store.samples(cells["none", "all", 0].id)
    right = {place for place, row in enumerate(base) if row["score"] >= 0.5}
    assert cases.right == len(right)
    assert {(cell.label, cell.budget) for cell in cases.cells} >= {("first", "4"), ("random seed 1", "50%")}
    for cell in cases.cells:
        label, _, seed = cell.label.partition(" seed ")
        rows = store.samples(cells[label, cell.budget, int(seed or 0)].id)
        wanted = [(place, row["prediction"]) for place, row in enumerate(rows) if place in right and row["score"] < 0.5]
        assert list(cell.lost) == wanted
    counts = [count for _, count in cases.hardest()]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == sum(len(cell.lost) for cell in cases.cells)


def test_cells_without_a_result_say_why(finished: FinishedSweep, data: SweepData, html: str) -> None:
    problems = problems_of(data)
    assert sorted((found.cell.partition("/")[0], found.outcome) for found in problems) == [
        *[("exploding", "failed")] * 2,
        *[("refusing", "refused")] * 2,
    ]
    for found in problems:
        assert found.reason
        assert found.cell in html


def test_samples_that_raised_are_counted_as_errors(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    store = SweepStore(copy)
    cell = next(cell for cell in store.plan() if cell.name == "first/toy@4")
    rows = [{**row, "error": "ValueError: no such tile", "score": 0.0} for row in store.samples(cell.id)]
    write_jsonl(copy / "cells" / cell.id / "samples.jsonl", rows)
    path = copy / "cells" / cell.id / "result.json"
    result = json.loads(path.read_text())
    result["quality"]["errors"] = len(rows)
    path.write_text(json.dumps(result))
    data = read_sweep(copy)
    (found,) = [found for found in problems_of(data) if found.cell == "first/toy@4"]
    assert found.reason == "8 of 8 samples, the first one: ValueError: no such tile"
    (cases,) = cases_of(data)
    (lost,) = [one for one in cases.cells if (one.label, one.budget) == ("first", "4")]
    assert lost.errors == len(lost.lost) == cases.right


def test_a_part_of_many_cases_is_evenly_spaced() -> None:
    cases = [(place, "no") for place in range(1000)]
    shown = evenly_spaced(cases, 50)
    assert len(shown) == 50
    assert (shown[0][0], shown[-1][0]) == (0, 999)
    assert max(b[0] - a[0] for a, b in pairwise(shown)) <= 21
    assert evenly_spaced(cases[:50], 50) == cases[:50]


def test_the_page_says_how_many_questions_it_leaves_out(
    finished: FinishedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple((place, "no") for place in range(40))
    from tokenprune.report.data.cases import Lost, Question
    from tokenprune.report.render import page as module

    cases = Cases("m", "t", {place: Question("q", "a", "f") for place in range(40)}, 50, (Lost("x", "4", many, 0),))
    monkeypatch.setattr(module, "PAGE_CASES", 20)
    (shown,) = module._case_data([cases])
    assert (shown["cells"][0]["lost"], len(shown["cells"][0]["shown"])) == (40, 20)
    assert len(shown["questions"]) == 20


def test_the_viewer_has_every_stored_sample_of_every_cell(finished: FinishedSweep, data: SweepData) -> None:
    kept = kept_tokens(data)
    (subject,) = kept["subjects"]
    assert [sample["index"] for sample in subject["samples"]] == [0, 1]
    store = SweepStore(finished.directory)
    stored = {
        (f"{cell.label} seed {cell.seed}" if cell.seed else cell.label, cell.budget_label): store.overlays(cell.id)
        for cell in store.plan()
    }
    assert len(subject["cells"]) == sum(bool(samples) for samples in stored.values())
    for cell in subject["cells"]:
        for sample in stored[cell["label"], cell["budget"]]:
            (image,) = cell["samples"][str(sample["index"])]["images"]
            assert image["kept"] == sample["images"][0]["kept"]
    assert len(kept["pictures"]) == 2  # each picture once, however many cells show it


def test_backticks_are_markup_and_not_shown(html: str) -> None:
    text = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    assert "<code>downsample</code>" in text
    assert "`" not in text
    assert "&lt;code" not in text


def test_the_first_table_has_the_columns_that_matter_and_another_has_all(html: str) -> None:
    boards = [
        re.findall(r"<th[^>]*>([^<]*)</th>", board) for board in re.findall(r"<table class=board>.*?</thead>", html)
    ]
    first, whole = boards[:2]
    assert {"accuracy %", "vs random", "layer average", "x none", "prefill ms"} <= set(first) < set(whole)
    assert "quartiles" not in first
    assert "quartiles" in whole


def test_lost_pictures_leave_the_rest_of_the_page(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    first, second = sorted((copy / "pictures").iterdir())
    first.unlink()
    kept = kept_tokens(read_sweep(copy))
    assert kept["lost"] == [first.name]
    (subject,) = kept["subjects"]
    assert [sample["pictures"] for sample in subject["samples"]] == [[second.name]]
    second.write_bytes(second.read_bytes()[:60])  # what a full disk leaves of a copy
    html = html_page(copy)
    assert "2 pictures could not be read" in html
    assert Reader(html).json("kept")["subjects"] == []


def test_a_folder_that_is_no_folder_is_one_error(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    shutil.rmtree(copy / "report", ignore_errors=True)
    (copy / "report").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(copy)


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    Image.effect_noise((3000, 1500), 80).save(tmp_path / "large.png")
    assert len(data_url(tmp_path / "large.png")) < 300_000
    assert data_url(tmp_path / "large.png").startswith("data:image/jpeg;base64,")
    assert MAX_SIDE < 3000


def test_a_question_cannot_break_the_page(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    evil = "</script><script>alert(1)</script><!-- <b>"
    for path in (copy / "cells").glob("*/samples.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_jsonl(path, [{**row, "question": evil, "prediction": evil} for row in rows])
    for path in (copy / "cells").glob("*/overlays.json"):
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({"samples": [{**one, "question": evil} for one in stored["samples"]]}))
    page = Reader(html_page(copy))
    assert page.open == []
    assert page.json("kept")["subjects"][0]["samples"][0]["question"] == evil
    assert "alert(1)" not in page.scripts["code"]


def test_a_sweep_without_the_unpruned_model_has_a_page(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for cell in SweepStore(copy).plan():
        if cell.pruner == "none":
            (copy / "cells" / cell.id / "result.json").unlink()
    html = html_page(copy)
    assert "no question is known to be lost" in html
    assert Reader(html).open == []


def test_an_unfinished_sweep_has_a_page(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for cell in SweepStore(copy).plan():
        for name in ("result.json", "error.json"):
            (copy / "cells" / cell.id / name).unlink(missing_ok=True)
    html = html_page(copy)
    assert "<svg" not in html
    assert Reader(html).open == []


def test_no_two_pruners_have_one_colour() -> None:
    colours = pruner_colours(f"pruner-{place}" for place in range(300))
    assert len(set(colours.values()) | {REFERENCE_COLOUR}) == 301
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in colours.values())
    again = pruner_colours([*(f"pruner-{place}" for place in range(5)), "pruner-0"])
    assert list(again.items()) == list(colours.items())[:5]  # more pruners change no colour
