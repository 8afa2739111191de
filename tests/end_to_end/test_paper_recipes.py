"""Every recipe of configs/recipes runs to its end on the tiny model, its run is sound, and the same wherever it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.prepare.recipes import RECIPES, recipe_names
from pipeline.run.record import load_run

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
SMALLER = {
    "model.path": ROOT / "data/base",
    "data.train.path": ROOT / "data/arithmetic/train.parquet",
    "data.heldout.path": ROOT / "data/arithmetic/heldout.parquet",
    "data.heldout.limit": 8,
    "engine.kv_cache_mib": 64,
    "generate.prompts": 8,
    "generate.samples": 4,
    "generate.shard_groups": 4,
    "train.batch_completions": 16,
    "stop.no_signal": "null",
}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_to_its_end_and_is_sound(rollbook: Any, tmp_path: Path, name: str) -> None:
    changes = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    ended = rollbook("run", RECIPES / f"{name}.yaml", *changes, "--set", f"run_dir={tmp_path / 'run'}")
    assert ended.status == 0, ended.err
    run = load_run(tmp_path / "run")
    assert run.missing is None
    assert all(step.checkpoint for step in run.iterations[:-1])
    said = rollbook("audit", tmp_path / "run", "--deep")
    assert said.status == 0, said.out


@pytest.mark.parametrize("name", ["remix", "spear", "ipo-md"])
def test_a_recipe_that_is_killed_ends_with_the_same_ids(tmp_path: Path, name: str) -> None:
    where = ["--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    command = [sys.executable, ROOT / "benchmarks/kill_matrix.py", "--recipe", name, "--kills", "3", "--rounds", "1", "--direct"]
    ended = subprocess.run([*command, *where], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["kills"] > 0 and found["artifacts_compared"] > 20
    assert (found["artifacts_that_differ"], found["leftover_files"], found["orphaned_processes"]) == (0, 0, 0)
