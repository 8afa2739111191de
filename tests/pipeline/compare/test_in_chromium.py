"""The comparison's page in a browser: what it is as wide as, its order, and its switches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.compare.table import record
from pipeline.compare.trials import Trials
from pipeline.look.report.comparison import render
from pipeline.look.report.comparison_data import read_compared

pytestmark = pytest.mark.chromium
LABELS = "[...document.querySelectorAll('#ranking tbody')[0].rows].map((row) => row.cells[0].innerText)"


@pytest.fixture(scope="module")
def page(make_trials: Callable[..., Trials], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a comparison of six algorithms with long names, two seeds, every epoch judged."""
    names = "reinforce,grpo,rec-oneside-nois:low=0.6,high=2.0,gspo,opmd,dpo"
    trials = make_trials(names, seeds=2, curve=True, failing={"dpo": "it " + "failed " * 40}, train={"epochs": 2})
    compared = read_compared(record(trials), trials.plan.snapshot.store)
    file = tmp_path_factory.mktemp("page") / "comparison.html"
    file.write_text(render(compared), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_all_figures_are_seen_without_scrolling_sideways(browser: Any, page: str, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.too_wide() == ([], [])
    assert browser.faint() == []
    assert browser.value("document.documentElement.scrollWidth") == width
    hidden = "[...document.querySelectorAll('#ranking td')].filter((cell) => !cell.getClientRects().length).length"
    assert browser.value(hidden) == 0


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(browser: Any, page: str) -> None:
    browser.open(page, 1400)
    first = browser.value(LABELS)
    heads = "document.querySelector('#ranking table').tHead.querySelectorAll('button')"
    gain = f"[...{heads}].find((one) => one.innerText === 'gain')"
    browser.value(f"{gain}.click()")
    assert browser.value(LABELS) == first
    browser.value(f"{gain}.click()")
    assert browser.value(LABELS) == [*first[:-1][::-1], first[-1]]  # what failed stays last


def test_legend_is_in_the_order_of_the_ranking_and_a_plot_tells_the_picked_line_alone(browser: Any, page: str) -> None:
    browser.open(page, 1400)
    names = browser.value("[...document.querySelectorAll('.pick label')].map((one) => one.innerText)")
    assert names[1:] == browser.value(LABELS)
    browser.value("document.querySelectorAll('.pick input')[1].click()")
    plot = "document.querySelector('#training svg[data-values]').parentElement"
    browser.value(f"{plot}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight'}}))")
    assert browser.value("[...document.querySelectorAll('.tip span')].map((one) => one.innerText)") == names[1:2]
