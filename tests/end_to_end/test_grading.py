"""Another reward for a run that is there: nothing is generated, and what comes out is what generation would have given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import Store

pytestmark = pytest.mark.slow
OTHER = {"components": [{"grader": "exact_match", "args": {"extract": "A:(-?[0-9]+)"}}]}
SLOW = """
import time

def score(completion, answer, prompt):
    time.sleep(0.1)
    return float(len(completion))
"""


def ids_of(store: Path) -> dict[str, str]:
    return {artifact.path.name: artifact.id for artifact in Store(store).artifacts() if artifact.kind == "rollouts"}


def test_another_reward_grades_and_generates_nothing(served: Any, finished: Any, write_config: Any, tmp_path: Path) -> None:
    run = finished.without(tmp_path / "graded")
    stored = ids_of(run / "artifacts")
    config = write_config(tmp_path / "other.yaml", reward=OTHER)
    graded = served("generate", config, "--set", f"run_dir={run}")
    assert graded.status == 0 and "starting vLLM" not in graded.err, graded.err
    made = {name: identity for name, identity in ids_of(run / "artifacts").items() if name not in stored}
    assert len(made) == 3 and (run / "logs" / "grade-0.log").exists()

    direct = served("generate", config, "--set", f"run_dir={tmp_path / 'direct'}")
    assert direct.status == 0, direct.err
    assert ids_of(tmp_path / "direct" / "artifacts") == made


def test_a_killed_grading_goes_on(rollbook: Any, finished: Any, tmp_path: Path) -> None:
    store = tmp_path / "artifacts"
    shutil.copytree(finished.directory / "artifacts", store)
    (rollouts,) = [a for a in Store(store).artifacts() if a.kind == "rollouts" and a.recipe["purpose"] == "train"]
    (tmp_path / "slow_grader.py").write_text(SLOW, encoding="utf-8")
    command = ("grade", rollouts.path, "--grader", "slow_grader:score", "--json")
    started = rollbook.start(*command, cwd=tmp_path)
    started.until(lambda: finished_shards(store))
    started.end()
    assert not started.left_over()
    assert len(ids_of(store)) == len(ids_of(finished.directory / "artifacts"))
    before = {path: path.stat().st_mtime_ns for path in finished_shards(store)}
    ended = rollbook(*command, cwd=tmp_path)
    assert ended.status == 0, ended.err
    said = json.loads(ended.out)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    whole = rollbook(*command, "--store", tmp_path / "apart", cwd=tmp_path)
    assert json.loads(whole.out)["id"] == said["id"]


def finished_shards(store: Path) -> list[Path]:
    """Of unfinished artifacts."""
    return [path for path in store.glob("rollouts/*/part-*.parquet") if not (path.parent / "manifest.json").exists()]
