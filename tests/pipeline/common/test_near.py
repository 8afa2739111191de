"""What was meant by a mistyped path."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common.near import did_you_mean, near_path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("data/base/model", "runs/demo", "runs/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("runs/dmeo", "runs/demo"),
        ("run/demo", "runs/demo"),  # one wrong part, whatever follows
        ("data/bse/model", "data/base/model"),
        ("run", "run.yaml"),  # the ending is missing
        ("run.yml", "run.yaml"),
    ],
)
def test_the_path_with_one_other_part_is_meant(here: Path, typed: str, meant: str) -> None:
    assert near_path(here / typed) == str(here / meant)
    assert did_you_mean(here / typed) == f". Did you mean {here / meant}?"


@pytest.mark.parametrize("typed", ["runs/demo", "quite/other", "rnus/dmeo", "data/bse/modle"])
def test_what_is_there_or_far_away_has_no_neighbor(here: Path, typed: str) -> None:
    assert near_path(here / typed) is None and did_you_mean(here / typed) == ""
