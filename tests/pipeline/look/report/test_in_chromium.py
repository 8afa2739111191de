"""The report in a browser: what it is as wide as, and what it tells where it is pointed at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.look.report.page import render
from pipeline.look.report.runs import render as render_runs
from pipeline.run.state import Run, Stop

pytestmark = pytest.mark.chromium
PLOT = "document.querySelector('#accuracy svg[data-values]')"
TOLD = "document.querySelector('.tip').innerText.split('\\n')"


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report whose texts are hostile and long."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(run), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_wider_than_the_page_and_nothing_has_to_be_scrolled_sideways(
    browser: Any, page: str, width: int, dark: bool
) -> None:
    browser.open(page, width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.too_wide() == ([], [])
    assert browser.faint() == []
    assert browser.value("document.documentElement.scrollWidth") == width
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(246, 247, 249)")


def test_several_runs_fit_the_page_too(browser: Any, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "runs.html"
    why = "no reward differs within any group: 0.0 for every completion of 128 groups, so there is nothing to learn from"
    stopped = replace(run, stopped=Stop("no_signal", 2, why, healthy=False))
    file.write_text(render_runs({"first": run, "second": stopped}), encoding="utf-8")
    for width in (1400, 400):
        browser.open(file.as_uri(), width)
        assert browser.too_wide() == ([], [])


def test_a_plot_tells_its_values_where_it_is_pointed_at(browser: Any, page: str) -> None:
    browser.open(page, 1400)
    browser.value(f"{PLOT}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.value("new Promise((done) => setTimeout(done, 200))")
    x, y, width, height = browser.value(
        f"(() => {{ const b = {PLOT}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
    )
    browser.point(x + 0.98 * width, y + height / 2)
    assert browser.value(TOLD) == ["iteration 2", "pass@1, sampled", "55 % [49, 61]", "greedy", "59 % [50, 68]"]
    browser.point(x + width / 2, y - 200)
    assert browser.value("document.querySelector('.tip').hidden")


def test_arrow_keys_lead_through_a_plot(browser: Any, page: str) -> None:
    browser.open(page, 1400)
    press = f"{PLOT}.parentElement.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight', bubbles: true}}))"
    browser.value(press)
    assert browser.value(TOLD)[:3] == ["iteration 0", "pass@1, sampled", "25 % [19, 31]"]
    browser.value(press)
    assert browser.value(TOLD)[0] == "iteration 1"


def test_no_script_of_the_data_has_run(browser: Any, page: str) -> None:
    browser.open(page, 1400)
    assert browser.value("document.scripts.length") == 1
    assert browser.value("performance.getEntriesByType('resource').length") == 0
