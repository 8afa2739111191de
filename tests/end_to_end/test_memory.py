"""A run under limits of its own memory: it goes through, or is refused before anything is generated."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Limited = Callable[[str, int], subprocess.CompletedProcess[str]]


@pytest.fixture
def limited(rollbook: Any, write_config: Callable[..., Path], tmp_path: Path) -> Limited:
    """limited("-v", kilobytes): the tiny run, after `ulimit` with these."""

    def run(limit: str, kilobytes: int) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-c", 'ulimit "$0" "$1" && shift && exec "$@"', limit, str(kilobytes), str(rollbook.program)]
        words += ["run", str(write_config(tmp_path / "tiny.yaml")), "--set", f"run_dir={tmp_path / 'run'}"]
        return subprocess.run(words, capture_output=True, text=True, env=rollbook.environment, timeout=600)

    return run


@pytest.mark.parametrize(
    ("limit", "kilobytes", "needs", "of"),
    [
        ("-v", 2_800_000, "the run does not fit: its own process needs about 3.8 GB", "of a process's address space (ulimit -v)"),
        ("-d", 1_500_000, "training does not fit: it needs about 0.", "of a process's data (ulimit -d)"),
    ],
)
def test_too_little_is_refused_before_anything_is_generated(
    limited: Limited, tmp_path: Path, limit: str, kilobytes: int, needs: str, of: str
) -> None:
    ended = limited(limit, kilobytes)
    assert ended.returncode == 2, ended.stderr
    assert needs in ended.stderr and f" is there, {of}" in ended.stderr and "What would fit: " in ended.stderr
    assert not list(tmp_path.glob("run/artifacts/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "kilobytes"), [("-v", 3_800_000), ("-d", 1_900_000)])
def test_what_is_not_refused_goes_through(limited: Limited, limit: str, kilobytes: int) -> None:
    ended = limited(limit, kilobytes)
    assert ended.returncode == 0, ended.stderr
    assert "evaluate 1" in ended.stderr
