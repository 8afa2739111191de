"""An audit's page in a browser: what it is as wide as, and that remedies and marks are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.look.audit.audit import audit
from pipeline.look.audit.page import render

pytestmark = pytest.mark.chromium


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_findings_pictures_and_tables_fit_the_page(browser: Any, copied: Any, tmp_path: Path, width: int, dark: bool) -> None:
    file = copied.artifact("rollouts", purpose="train") / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-9] + b"somewhere")
    page = tmp_path / "audit.html"
    page.write_text(render(audit(copied.store, deep=True, samples=4, steps=0)), encoding="utf-8")
    browser.open(page.as_uri(), width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.too_wide() == ([], [])
    assert browser.faint() == []
    assert browser.value("document.documentElement.scrollWidth") == width
    seen = "[...document.querySelectorAll('{}')].filter((one) => one.getClientRects().length).length"
    assert browser.value(seen.format(".finding.error .commands")) >= 1
    assert browser.value(seen.format(".graph svg")) == 1
    assert browser.value(seen.format(".graph .damaged rect.box")) == 1
