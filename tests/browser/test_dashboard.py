"""What a person sees of a real sweep: the preset views in MLflow, and the page that can be mailed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import Served, Swept
from tokenprune.sweep import SweepStore

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Shoot = Callable[[Any, str], Path]
CHART = ".js-plotly-plot .main-svg"
POINT = ".js-plotly-plot .scatterlayer path.point"
BROKEN = re.compile(
    r"something went wrong|an error occurred|failed to (load|fetch)|not found|no runs|unable to|can't find|"
    r"invalid (view|search)|does not exist",
    re.IGNORECASE,
)


def show(page: Page, address: str) -> None:
    """Open a page; its address differs from the last one after `#` alone, so load it for certain."""
    page.goto("about:blank")
    page.goto(address)


def text_of(page: Page) -> str:
    """What the page says, which must be no complaint."""
    text = page.inner_text("body")
    assert not BROKEN.search(text), text
    return text


def names(swept: Swept, *, outcome: str = "done") -> list[str]:
    store = SweepStore(swept.directory)
    return [cell.name for cell in store.plan() if store.state(cell.id) == outcome]


def hide_path(page: Page) -> None:
    """Where the file lies on the machine that runs the test is nothing for a document."""
    page.get_by_text(re.compile("^Path: ")).first.evaluate("(line) => { line.style.visibility = 'hidden'; }")


def test_the_sweep_printed_links_of_every_kind(swept: Swept, served: Served) -> None:
    kinds = ["Trade-off", "Per task", "All axes", "Compare answers", "Kept tokens", "Compare runs", "Report"]
    assert [name.partition(":")[0] for name in served.links] == kinds
    assert f"dashboard: tokenprune ui {swept.directory}" in swept.said
    for link in served.links.values():
        assert link.partition("#")[2] in swept.said


def test_trade_off(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    show(page, served.link("Trade-off"))
    page.wait_for_selector(POINT)
    page.wait_for_function(f"document.querySelectorAll('{CHART}').length >= 3")
    text = text_of(page)
    assert "cost/tokens_layer_average" in text
    assert "quality/accuracy" in text
    assert f"{len(SweepStore(swept.directory).plan())} matching runs" in text
    assert {"none/scenes@all", "iwp/scenes@5.6%"} <= set(page.locator("a[href*='/runs/']").all_inner_texts())
    chart = page.locator(".js-plotly-plot").first
    # every cell with a result is one point of each chart
    assert chart.locator("path.point").count() == len(names(swept))
    fills = chart.locator("path.point").evaluate_all("(points) => points.map((point) => point.style.fill)")
    assert len(set(fills)) == len({name.partition("/")[0] for name in names(swept)})  # one colour per pruner
    shoot(page, "trade-off")


def test_per_task(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    page.set_viewport_size({"width": 1480, "height": 1240})  # charts out of sight are not drawn
    show(page, served.link("Per task"))
    page.wait_for_selector(POINT)
    page.get_by_text("families of questions").first.wait_for()
    page.locator("svg text", has_text="quality/family/colour").first.wait_for()
    page.wait_for_function(f"document.querySelectorAll('{CHART}').length >= 6")
    text = text_of(page)
    for family in ("colour", "comparison", "counting"):
        assert f"quality/family/{family}" in text
    shoot(page, "per-task")


def test_all_axes(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    show(page, served.link("All axes"))
    page.wait_for_selector(".js-plotly-plot .parcoords, .parcoords, svg.parcoords, [class*=parcoords]")
    text = text_of(page)
    assert "Parallel Coordinates" in text
    shoot(page, "all-axes")


def test_compare_answers(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    show(page, served.link("Compare answers"))
    page.get_by_text("prediction", exact=True).first.wait_for()
    page.get_by_text("is there a yellow circle ? [yes]").first.wait_for()
    text = text_of(page)
    assert "samples.json" in text
    at_smallest = [name for name in names(swept) if name.endswith(("@5.6%", "@all"))]
    assert f"{len(at_smallest) + len(names(swept, outcome='refused'))} matching runs" in text
    shown = page.locator("a[href*='/runs/']").all_inner_texts()
    assert set(at_smallest) <= set(shown)
    assert "iwp/scenes@25%" not in shown  # another budget has a view of its own
    shoot(page, "compare-answers")


def test_kept_tokens(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    show(page, served.link("Kept tokens"))
    pictures = page.locator("img[src*='get-artifact']")
    pictures.first.wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll(\"img[src*='get-artifact']\")].filter((one) => one.naturalWidth > 0).length >= 6"
    )
    text_of(page)
    shoot(page, "kept-tokens")


def test_compare_page(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    show(page, served.link("Compare runs"))
    page.wait_for_selector(CHART)
    text = text_of(page)
    assert "Parallel Coordinates Plot" in text
    at_smallest = [name for name in names(swept) if name.endswith("@5.6%")]
    assert f"Comparing {len(at_smallest)} Runs from 1 Experiment" in text
    for name in at_smallest:
        assert name in text
    shoot(page, "compare-runs")


def test_artifacts_of_a_cell(page: Page, swept: Swept, served: Served, shoot: Shoot) -> None:
    show(page, served.link("Trade-off"))
    page.locator("a[href*='/runs/']", has_text="iwp/scenes@5.6%").first.click()
    page.wait_for_url("**/runs/*")
    run = page.url
    page.get_by_text("quality/accuracy", exact=True).first.wait_for()
    assert "scenes" in text_of(page)
    page.goto("about:blank")
    page.goto(f"{run.partition('?')[0]}/artifacts/samples.json?workflowType=machine_learning")
    page.get_by_text("is there a yellow circle ? [yes]").first.wait_for()
    text = text_of(page)
    for name in ("cell.json", "samples.json", "kept-0.png"):
        assert name in text
    hide_path(page)
    shoot(page, "artifacts")


def test_data_set_of_a_run(page: Page, swept: Swept, served: Served) -> None:
    show(page, served.link("Compare answers"))
    page.get_by_text(re.compile(r"^scenes \([0-9a-f]{16}\)$")).first.wait_for()


def test_the_report_is_shown_inside_the_page(page: Page, served: Served, shoot: Shoot) -> None:
    show(page, served.link("Report"))
    frame = page.frame_locator("iframe")
    frame.locator("#viewer .panel").first.wait_for()
    assert frame.locator(".plot svg").count() > 2
    hide_path(page)
    shoot(page, "report-in-mlflow")


def test_the_report_alone(page: Page, swept: Swept, shoot: Shoot) -> None:
    report = swept.directory / "report" / "report.html"
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(report.as_uri())
    page.wait_for_selector("#viewer .panel")
    text = text_of(page)
    assert wrong == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}  # nothing from anywhere else
    for name in ("iwp", "vtw", "visionzip", "of the visual tokens kept", "refused", "its floor is"):
        assert name in text
    shoot(page, "report-tables")

    assert page.locator(".plot svg:visible").count() == 2  # the two Pareto plots; the others wait for a click
    plot = page.locator(".plot svg").first
    assert plot.locator("text", has_text="Pareto front").count() == 1
    page.locator("#trade-offs").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('trade-offs').scrollIntoView()")
    shoot(page, "report-trade-offs")
    name = plot.locator("[data-legend]", has_text="divprune").last
    line = plot.locator(f"[data-series='{name.get_attribute('data-legend')}']").first
    assert line.evaluate("(line) => getComputedStyle(line).display") != "none"
    name.click()
    assert line.evaluate("(line) => getComputedStyle(line).display") == "none"
    name.click()
    page.locator("details summary", has_text="GFLOPs").click()
    assert page.locator(".plot svg:visible").count() == 3
    page.locator("details summary", has_text="GFLOPs").click()

    page.evaluate("document.getElementById('families').scrollIntoView()")
    assert page.locator("table.heat:visible").count() == 1  # of the last budget; the others wait for a click
    assert page.locator("table.heat:visible td[style]").count() >= 7
    shoot(page, "report-families")

    page.evaluate("document.getElementById('kept-tokens').scrollIntoView()")
    at_smallest = [name for name in names(swept) if name.endswith(("@5.6%", "@all"))]
    assert page.locator("#viewer .panel").count() == len(at_smallest)
    before = page.locator("#viewer canvas").nth(1).evaluate("(canvas) => canvas.toDataURL()")
    assert page.locator("#viewer-sample option").count() == 6
    page.select_option("#viewer-sample", index=4)
    assert page.locator("#viewer canvas").nth(1).evaluate("(canvas) => canvas.toDataURL()") != before
    shoot(page, "report-kept-tokens")
    page.select_option("#viewer-budget", "25%")
    assert page.locator("#viewer .panel").count() == len(at_smallest) + 1  # `vtw` runs at this one
    assert "64 tokens" in page.locator("#viewer").inner_text()

    page.evaluate("document.getElementById('errors').scrollIntoView()")
    page.select_option("#cases-budget", "5.6%")
    count = page.locator("#cases tbody tr").count()
    chosen = page.locator("#cases-pruner option").first.inner_text()
    assert chosen == f"random: {count} lost"
    assert f"{count} of the" in page.locator("#cases-count").inner_text()
    shoot(page, "report-errors")

    first = page.locator("table.board").first
    first.locator("th", has_text="pruner").first.click()
    labels = first.locator("tbody td.name").all_inner_texts()
    assert labels[0] == "none"
    assert labels[1:] == sorted(labels[1:])


def test_the_report_can_be_mailed(swept: Swept) -> None:
    report = swept.directory / "report" / "report.html"
    assert report.stat().st_size < 5e6
    html = report.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?https?:", html)
