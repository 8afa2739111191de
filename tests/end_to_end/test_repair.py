"""`rollbook repair --regenerate` with the real stages: damaged files are made anew, and every byte is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.store import load_artifact

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
HELDOUT = {"path": str(ROOT / "data/arithmetic/heldout.parquet"), "prompt_id": "prompt_id", "limit": 2}
SMALL = {"generate": {"prompts": 4, "samples": 2, "shard_groups": 1}, "evaluate": {"samples": 1, "k": [1], "greedy": False}}


def test_damaged_artifacts_are_made_anew_with_the_ids_they_had(
    rollbook: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "small.yaml", run_dir=str(run), iterations=1, data={"heldout": HELDOUT}, **SMALL)
    ended = rollbook("run", config)
    assert ended.status == 0, ended.err
    step = json.loads((run / "run.json").read_text(encoding="utf-8"))["iterations"][0]
    for role, name in (("rollouts", "part-00002.parquet"), ("shaped", "part-00001.parquet"), ("checkpoint", "model.safetensors")):
        place = run / step[role]["path"]
        before = load_artifact(place)
        data = bytearray((place / name).read_bytes())
        data[len(data) // 2] ^= 1
        (place / name).write_bytes(data)
        ended = rollbook("repair", place)
        assert ended.status == 1 and f"damaged   {name}" in ended.out
        ended = rollbook("repair", place, "--regenerate")
        assert ended.status == 0, ended.err
        assert "It has the id it had: every byte is as it was" in ended.out
        load_artifact(place).verify()
        assert load_artifact(place).id == before.id
    assert rollbook("repair", place).status == 0
