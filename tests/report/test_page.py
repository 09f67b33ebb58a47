"""The page that can be mailed: what it holds, and that it holds it itself."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sweep.fixtures import FinishedSweep
from tokenprune.report import leaderboard
from tokenprune.report.data.cases import Cases, cases_of, problems_of, spread
from tokenprune.report.figures.colours import REFERENCE_COLOUR, pruner_colours, sweep_colours
from tokenprune.report.figures.plots import AVERAGE, heat_map, interactive
from tokenprune.report.figures.viewer import MAX_SIDE, data_url, kept_tokens
from tokenprune.report.render.page import html_page, write_report
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


def test_the_script_that_draws_is_there_once_and_small(page: Reader, html: str) -> None:
    import base64
    import gzip

    from plotly.offline import get_plotlyjs

    assert gzip.decompress(base64.b64decode(page.scripts["plotly"])).decode() == get_plotlyjs()
    assert html.count('id="plotly"') == 1
    assert len(html) < 3e6


def test_figures_are_the_pareto_plots_and_the_heat_map(page: Reader) -> None:
    figures = page.json("figures")
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert titles[0] == "accuracy and visual tokens, mean over decoder layers"
    assert titles[1].startswith("accuracy and prefill")
    assert titles[-1] == "accuracy per pruner and family of questions, %"
    assert [figures[place]["data"][0]["name"] for place in (0, 1)] == ["Pareto front"] * 2


def test_the_front_is_that_of_the_tables(finished: FinishedSweep) -> None:
    board = leaderboard(finished.directory)
    (front,) = [front for front in board.summaries[0].fronts if front.cost == "layer_average"]
    colours = sweep_colours(read_sweep(finished.directory))
    trace = interactive(board.tables, AVERAGE, colours, front.points).data[0]
    assert list(trace.x) == [point.cost for point in front.points]
    assert list(trace.y) == [point.accuracy for point in front.points]
    assert interactive(board.tables, AVERAGE, colours).data[0].name != "Pareto front"


def test_the_heat_map_shows_every_pruner_and_family(finished: FinishedSweep) -> None:
    board = leaderboard(finished.directory)
    figure = heat_map(board.tables)
    assert len(figure.data) == len(board.tables)
    assert [trace.visible for trace in figure.data].count(True) == 1
    for trace, table in zip(figure.data, board.tables, strict=True):
        rows = [row for row in table.rows if row.families]
        assert list(trace.y) == [row.label for row in rows]
        for line, row in zip(trace.z, rows, strict=True):
            assert row.families is not None
            assert list(line) == [row.families[name].accuracy.mean for name in trace.x]


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
    shown = spread(cases, 50)
    assert len(shown) == 50
    assert (shown[0][0], shown[-1][0]) == (0, 999)
    assert max(b[0] - a[0] for a, b in pairwise(shown)) <= 21
    assert spread(cases[:50], 50) == cases[:50]


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
    page = Reader(html_page(copy))
    assert page.json("figures") == []
    assert "plotly" not in page.scripts
    assert page.open == []


def test_no_two_pruners_have_one_colour() -> None:
    colours = pruner_colours(f"pruner-{place}" for place in range(300))
    assert len(set(colours.values()) | {REFERENCE_COLOUR}) == 301
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in colours.values())
    again = pruner_colours([*(f"pruner-{place}" for place in range(5)), "pruner-0"])
    assert list(again.items()) == list(colours.items())[:5]  # more pruners change no colour
