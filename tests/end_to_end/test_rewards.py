"""From a run's graded rollouts to a reward model, and back: what it learned grades the rollouts anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.run.record import load_run

pytestmark = pytest.mark.slow

BASE = Path(__file__).resolve().parents[2] / "data/base"


def test_a_learned_reward_is_found_the_second_time_and_grades(finished: Any, rollbook: Any, tmp_path: Path) -> None:
    answers = load_run(finished.directory).iterations[0].answers
    assert answers is not None and answers.rollouts is not None
    rollouts, store = str(answers.rollouts.path), str(tmp_path / "store")
    pairs = {"rollouts": [rollouts], "ties": True, "heldout": 0.4}
    settings = {"name": "small", "store": store, "model": {"path": str(BASE)}, "pairs": pairs, "train": {"learning_rate": 1e-4}}
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    first, second = (rollbook("reward", tmp_path / "reward.yaml", "--json", cwd=tmp_path) for _ in range(2))
    assert first.status == second.status == 0, first.err
    made = json.loads(first.out)
    assert json.loads(second.out) == made and "already there" in second.err
    assert made["heldout"]["pairs"] > 0 and made["steps"] > 0
    args = json.dumps({"path": made["path"]})
    graded = rollbook("grade", rollouts, "--grader", "reward_model", "--args", args, "--store", store, "--json", cwd=tmp_path)
    assert graded.status == 0, graded.err
    assert json.loads(graded.out)["reward_mean"] != answers.rollouts.summary["reward_mean"]
    audited = rollbook("audit", made["path"], "--deep", cwd=tmp_path)
    assert "derivation" in audited.out and "error" not in audited.out, audited.out
