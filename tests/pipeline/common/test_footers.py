"""Footers are tried in a process of their own; that one ends with a damaged one, and not who asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.common import footers

ENDS = "import os, sys; sys.stdin.readline(); print('  what():  type does not match', file=sys.stderr, flush=True); os.abort()"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "two\nlines é.parquet"
    pl.DataFrame({"a": [[1, 2], []], "b": ["x", None]}).write_parquet(path)
    return path


def test_a_sound_file_is_looked_at_again_and_again_by_one_process(sound: Path) -> None:
    footers.refuse_damaged(sound)
    first = list(footers._ALIVE)
    footers.refuse_damaged(sound)
    assert len(first) == 1 and first == footers._ALIVE


def test_what_is_no_parquet_file_is_left_to_its_reader(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "text.parquet").write_text("nothing")
    footers.refuse_damaged(tmp_path / "text.parquet")
    footers.refuse_damaged(tmp_path / "absent.parquet")
    footers.refuse_damaged(sound)


def test_a_file_whose_footer_ends_the_process_is_refused_and_the_next_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, sound: Path
) -> None:
    def ending() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", ENDS], stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    with monkeypatch.context() as patched:
        patched.setattr(footers, "_ALIVE", [])
        patched.setattr(footers, "_started", ending)
        with pytest.raises(OSError, match=r"^the footer is damaged: type does not match$"):
            footers.refuse_damaged(sound)
        assert footers._ALIVE == []
    footers.refuse_damaged(sound)
