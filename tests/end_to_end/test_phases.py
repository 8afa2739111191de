"""A run whose later phase is changed after it has ended: what came before is taken as it is, moments of AdamW included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.record import load_run
from pipeline.store import Store

pytestmark = pytest.mark.slow


def test_a_later_phase_of_a_finished_run_is_changed(rollbook: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    def run(name: str, **later: Any) -> list[str]:
        phases = [{"iterations": "0-1"}, {"iterations": "2-", "train": later}]
        config = write_config(tmp_path / f"{name}.yaml", iterations=3, phases=phases)
        ended = rollbook("run", config, "--set", f"run_dir={tmp_path / name}", "--set", f"store={tmp_path / 'store'}")
        assert ended.status == 0, ended.err
        said.append(ended.err)
        return [step.checkpoint.id for step in load_run(tmp_path / name).iterations[:3] if step.checkpoint]

    said: list[str] = []
    first = run("first", learning_rate=1e-3)
    made = {artifact.id for artifact in Store(tmp_path / "store").artifacts()}
    other = run("other", learning_rate=2e-3)
    assert other[:2] == first[:2]
    assert other[2] != first[2]
    assert made <= {artifact.id for artifact in Store(tmp_path / "store").artifacts()}
    assert "the 2 trainings that led to it are done once more" in " ".join(said[1].split())
