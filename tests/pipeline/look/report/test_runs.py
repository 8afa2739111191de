"""Several runs on one page, one run as Markdown, and the map of solved groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.look.report import runs as pages
from pipeline.look.report.groups import _label, _shares, solved_panel
from pipeline.look.report.markdown import markdown
from pipeline.look.report.sections import Panel
from pipeline.run.state import Run
from pipeline.run.status import status

Make = Callable[..., Run]


def other(run: Run) -> Run:
    """The same run with another learning rate and name."""
    train = run.config.train.model_copy(update={"learning_rate": 0.5})
    config = run.config.model_copy(update={"train": train, "name": "<b>other</b>", "run_dir": "elsewhere"})
    return Run(config, run.train_prompts, run.heldout_prompts, run.iterations)


def test_only_settings_that_differ_are_listed(run: Run) -> None:
    rows = pages.settings_that_differ({"a": run, "b": other(run)})
    assert rows == [["train.learning_rate", str(run.config.train.learning_rate), "0.5"]]
    assert pages.settings_that_differ({"a": run, "b": run}) == []


def test_the_page_of_several_runs_names_each_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    page = pages.write_runs({"first": run, "<b>other</b>": other(run)}, tmp_path / "runs.html").read_text(encoding="utf-8")
    assert "<b>other</b>" not in page
    assert "&lt;b&gt;other&lt;/b&gt;" in page
    assert page.count("<svg") >= 3
    assert page.count("<script>") == 1 and "script-src 'sha256-" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_the_lines_of_many_runs_can_be_told_apart(run: Run) -> None:
    rows = {f"run {number}": status(run) for number in range(8)}
    panel = pages._curve(rows, "pass_at_1")
    assert isinstance(panel, Panel)
    assert len({(key.role, key.label.partition("(")[2]) for key in panel.keys}) == 8
    assert panel.keys[6].label == "run 6 (dashed)" and panel.picture.count("stroke-dasharray") == 2


def test_runs_with_one_name_are_told_apart_by_their_places(run: Run) -> None:
    assert pages.labels_of([Path("a"), Path("b")], [run, run]) == ["a", "b"]
    assert pages.labels_of([Path("a"), Path("b")], [run, other(run)]) == [run.config.name, "<b>other</b>"]
    third = Run(run.config.model_copy(update={"name": "a"}))
    assert pages.labels_of([Path("a"), Path("b"), Path("c")], [run, run, third]) == ["a", "b", "c"]
    with pytest.raises(UserError, match="named twice"):
        pages.labels_of([Path("a"), Path("./a")], [run, run])


def test_markdown_has_a_row_per_iteration_and_nothing_that_markdown_would_read(run: Run) -> None:
    text = markdown(other(run))
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + len(run.iterations)
    assert "\\<b\\>other" in text


def test_groups_are_counted_by_how_many_of_them_were_solved(run: Run) -> None:
    assert isinstance(solved_panel(run), Panel)
    assert _shares(np.array([0.0, 0.0, 0.5, 1.0]), 3).tolist() == [1.0, 0.5, 0.5]
    assert _shares(np.array([0.01, 0.99]), 9).tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_rows_of_large_groups_are_ranges_with_none_and_all_apart() -> None:
    assert [_label(row, 9, 64) for row in (0, 1, 7, 8)] == ["0", "1–8", "49–56", "64"]
    assert [_label(row, 5, 4) for row in range(5)] == ["0", "1", "2", "3", "4"]
