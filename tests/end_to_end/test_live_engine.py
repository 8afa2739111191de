"""The finished run reloaded its engine; a fresh one gives the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.record import load_run

pytestmark = pytest.mark.slow


def test_a_fresh_engine_gives_the_bytes_of_a_reloaded_one(
    served: Any, finished: Any, tmp_path: Path, ids: Callable[[Path], dict[str, str]]
) -> None:
    """Iteration 1 was answered by the process of iteration 0, unless its engine's check failed: then its log names a start."""
    logs = finished.directory / "logs"
    assert "starting vLLM" in finished.command.err + finished.command.out
    assert (finished.command.err + finished.command.out).count("starting vLLM") == 1
    assert (logs / "generate-1.log").is_file()
    run = tmp_path / "run"
    shutil.copytree(finished.directory, run)
    answers = load_run(finished.directory).iterations[1].answers
    assert answers and answers.greedy
    for artifact in (answers.sampled, answers.greedy):
        shutil.rmtree(run / artifact.path.relative_to(finished.directory))
    ended = served("run", finished.config, "--set", f"run_dir={run}")
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished.directory)
