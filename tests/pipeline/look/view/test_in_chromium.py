"""The pages in headless Chromium: they look as they should at both widths, and what models wrote does nothing there either."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.look.view.parts import parts_of
from pipeline.look.view.screens import address
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts

pytestmark = pytest.mark.chromium
HOSTILE = (
    "<script>window.done = 1</script><img src=x onerror='window.done = 2'>",
    "</style></textarea></title><svg onload='window.done = 3'>",
    "\u202e\u2066 turned \x1b[31m\x00",
    "W" * 20_000,
    "word " * 3000,
    "\u0301" * 400,
)


def write(place: Path) -> None:
    """Two imports of one prompt, of completions that would do harm."""
    types = {name: column.dtype for name, column in Rollouts.columns().items()} | {"reward_<b>x": pl.Float64}
    for number in (0, 1):
        same = {"group_id": f"g{HOSTILE[0]}", "prompt_id": HOSTILE[0], "prompt_text": HOSTILE[1], "prompt_token_ids": [1]}
        same |= {"completion_token_ids": [1], "policy_id": "m", "policy_version": number, "source": "import", "engine": "e"}
        same |= {"logprobs_mode": "unknown", "status": "ok", "reward": 0.5, "reward_<b>x": 0.5, "error": HOSTILE[0]}
        rows = [{**dict.fromkeys(types), **same, "sample_index": n, "completion_text": text} for n, text in enumerate(HOSTILE)]
        with Store(place).work(Request("rollouts", "import/1", {"number": number})) as work:
            assert isinstance(work, Work)
            work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
            work.finish({"completions": len(rows), "iteration": number})


@pytest.mark.timeout(300)
def test_every_screen_holds_at_both_widths_and_runs_nothing(browser: Any, served: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "store")
    page = served(tmp_path / "store")
    one, other = [part.key for part in parts_of([str(tmp_path / "store")])]
    group = address("group", {"of": one, "group": f"g{HOSTILE[0]}"})
    sides = address("sides", {"prompt": HOSTILE[0], "a": one, "b": other})
    for name in ("", "?q=turned&sort=-reward", "?q=nonsense%3E", group, sides):
        for width in (1400, 400):
            for dark in (False, True):
                browser.open(page.server.url + name, width, dark=dark)
                assert browser.value("window.done") is None
                assert browser.too_wide()[0] == [], (name, width)
                assert browser.faint() == [], (name, width, dark)
                assert browser.value("document.scripts.length") == 0
                back = browser.value("getComputedStyle(document.body).backgroundColor")
                assert back == ("rgb(20, 23, 27)" if dark else "rgb(246, 247, 249)"), "the style sheet is let in by its hash"
    assert browser.value("document.querySelectorAll('article').length") == 2 * len(HOSTILE)


@pytest.mark.timeout(300)
def test_turns_of_an_episode_stand_apart_whatever_a_tool_wrote(
    browser: Any, served: Callable[..., Any], played: tuple[Artifact, Artifact]
) -> None:
    page = served(played[1].path)
    for width in (1400, 400):
        for dark in (False, True):
            browser.open(
                page.server.url + address("group", {"of": played[1].id[:16], "group": "train-0@01234567"}), width, dark=dark
            )
            assert browser.too_wide()[0] == [] and browser.value("document.scripts.length") == 0
            assert browser.faint() == []
            heads = "[...document.querySelectorAll('.turn h3')]"
            assert browser.value(f"{heads}.map(head => head.textContent)") == [
                "policy, reward 0.5",
                "tool calc ulator‹U+001B›[31m, tool_error",
                "policy, reward 1",
            ]
            boxes = browser.value("[...document.querySelectorAll('.turn')].map(turn => turn.getBoundingClientRect().toJSON())")
            assert all(one["bottom"] <= other["top"] for one, other in pairwise(boxes)), "one below the other"
            shades = browser.value(
                "[...document.querySelectorAll('.turn')].map(t => t.querySelectorAll('.p1, .p2, .p3, .p4').length)"
            )
            assert shades == [5, 0, 1], "drawn tokens alone are shaded"
            tool = "document.querySelector('.turn.tool .said')"
            assert "policy, reward 9" in browser.value(f"{tool}.textContent")
            fonts = browser.value(f"[getComputedStyle({tool}).fontFamily, getComputedStyle({heads}[1]).fontFamily]")
            assert fonts[0] != fonts[1], "what was said has another face than who said it"


@pytest.mark.timeout(300)
def test_a_filter_is_typed_and_a_head_is_clicked(browser: Any, served: Callable[..., Any], finished: Path) -> None:
    page = served(finished)
    browser.open(page.server.url, 1400)
    click(browser, "document.querySelector('[name=q]').value = 'set=rollouts'; document.querySelector('form button').click()")
    assert browser.value("location.search") == "?q=set%3Drollouts&sort="
    assert browser.value("document.querySelectorAll('tbody tr').length") == 4
    click(browser, "[...document.querySelectorAll('th a')].find(a => a.textContent == 'advantage').click()")
    assert browser.value("[...document.querySelectorAll('td[data-name=advantage]')].map(td => td.textContent).join()") == (
        "0.5,0.5,-0.5,-0.5"
    )
    click(browser, "document.querySelector('td[data-name=completion] a').click()")
    assert browser.value("document.querySelectorAll('article').length") == 2
    assert browser.value("document.querySelector('article .said span').title").startswith("logprob -0.5, probability 0.607")
    shade = browser.value("getComputedStyle(document.querySelector('article .said .p1')).backgroundColor")
    assert shade.startswith("rgba(196, 86, 10")


def click(browser: Any, script: str) -> None:
    """Do something that leads to another page, and wait for that."""
    browser.value(script)
    browser._wait("Page.loadEventFired")
