"""The documentation as a site, opened from disk in Chromium: pages fit and can be read, the search finds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.chromium, pytest.mark.slow]
BUILD = ("--quiet", "--from", "mkdocs", "--with", "mkdocs-material>=9.6", "mkdocs", "build", "--site-dir")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    uvx, place = Path(sys.executable).with_name("uvx"), tmp_path_factory.mktemp("site")
    if not uvx.exists():
        pytest.skip("no uvx in this environment, which fetches mkdocs for `make docs`")
    command = [str(uvx), "--python", sys.executable, *BUILD, str(place)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    if done.returncode and ("error sending request" in done.stderr or "Failed to fetch" in done.stderr):
        pytest.skip("mkdocs cannot be fetched here")
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.timeout(300)
def test_a_page_is_as_dark_as_the_system_whatever_it_was_before(browser: Any, site: Path) -> None:
    mean = "getComputedStyle(document.body).{}.match(/[0-9.]+/g).slice(0, 3).reduce((sum, one) => sum + +one, 0) / 3"
    for dark in (False, True, False):
        browser.open((site / "metrics.html").as_uri(), 1400, dark=dark)
        background, ink = (browser.value(mean.format(of)) for of in ("backgroundColor", "color"))
        assert (background < 64 and ink > 128) if dark else (background > 240 and ink < 64)


@pytest.mark.timeout(300)
def test_a_table_that_scrolls_has_a_shade_at_its_side(browser: Any, site: Path) -> None:
    browser.open((site / "recipes.html").as_uri(), 400)
    wide = "[...document.querySelectorAll('.md-typeset__scrollwrap')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
    shades = browser.value(f"{wide}.map((one) => getComputedStyle(one).backgroundImage.split('linear-gradient').length - 1)")
    assert shades and set(shades) == {4}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("width", [1400, 400])
def test_the_search_works_from_disk(browser: Any, site: Path, width: int) -> None:
    browser.open((site / "index.html").as_uri(), width)
    browser.value("document.querySelector('#__search').click()")
    browser.value(
        "(() => { const field = document.querySelector('.md-search__input'); field.focus(); field.value = 'importance ratio';"
        " field.dispatchEvent(new Event('input', {bubbles: true})); field.dispatchEvent(new KeyboardEvent('keyup')); })()"
    )
    links, end = "[...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)", time.monotonic() + 60
    while not (found := browser.value(links)) and time.monotonic() < end:
        time.sleep(0.2)
    assert any("/metrics.html" in link or "/algorithms.html" in link for link in found), found
    assert all(link.startswith("file://") for link in found)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_fits_and_can_be_read(browser: Any, site: Path, dark: bool) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 20
    wrong: dict[str, Any] = {}
    for page in pages:
        for width in (1400, 400):
            browser.open(page.as_uri(), width, dark=dark)
            found = browser.value("document.documentElement.scrollWidth") - width, browser.faint()
            if found != (0, []):
                wrong[f"{page.name} at {width}"] = found
    assert wrong == {}
