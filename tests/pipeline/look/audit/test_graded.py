"""Rollouts that were graded again: their labels are looked up again, as long as the file is what it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.reward import RewardConfig
from pipeline.look.audit.audit import audit
from pipeline.regrade.plan import grade_request, job_of
from pipeline.regrade.stage import grade
from pipeline.run.process import Reporter
from pipeline.store import Store
from pipeline.store.store import load_artifact

PART = "part-00000.parquet"


def graded(copied: Any, labels: Path) -> Path:
    """Training rollouts with rewards from a file, found by their groups."""
    stored = load_artifact(copied.artifact("rollouts", purpose="train"))
    rows = pl.concat([pl.read_parquet(path) for path in stored.tables("rollouts")])
    rows.select("group_id", "sample_index", reward=pl.col("sample_index") * 2.5 - 1).write_csv(labels)
    args = {"path": str(labels), "by": "group_id+sample_index"}
    reward = RewardConfig.model_validate({"components": [{"grader": "from_file", "args": args}]})
    store = Store(copied.store)
    job = job_of(stored, grade_request(stored, reward), [store])
    spec = {"store": str(store.root), "reward": reward.model_dump(mode="json"), "jobs": [job]}
    return Path(grade(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifacts"][0])


def test_labels_are_looked_up_again_while_the_file_is_what_it_was(copied: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    path = graded(copied, labels)

    whole = audit(str(path), deep=True, samples=1, steps=0)
    assert [f for f in whole.findings if f.severity in ("error", "unknown")] == []
    done = {count.what: (count.done, count.total) for count in whole.counts if count.area == "derivation"}
    rows = sum(file.rows or 0 for file in load_artifact(path).files)
    assert done["rewards graded again"] == (rows, rows)

    copied.rewrite(path, PART, reward_from_file=pl.lit(9.0), reward=pl.lit(9.0))
    forged = audit(str(path), deep=True, samples=1, steps=0)
    (found,) = [f for f in forged.findings if (f.severity, f.check) == ("error", "reward") and f.row == 0]
    assert (found.column, found.found) == ("reward_from_file", "9.0, graded again -1.0")

    labels.write_text(labels.read_text("utf-8") + "\n", encoding="utf-8")
    other = audit(str(path), deep=True, samples=1, steps=0)
    notes = [f.found for f in other.findings if f.check == "not recomputed"]
    assert any("its hash is not the recipe's" in str(note) for note in notes)


def test_rewards_of_another_version_of_the_grader_are_not_compared(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied.artifact("rollouts", purpose="train")
    monkeypatch.setattr("pipeline.rewards.registry.VERSIONS", {"regex": 2})
    found = audit(str(path), deep=True, samples=1, steps=0).findings
    said = "not done: regex: version 1 of the grader gave these, and this is version 2"
    assert any(str(f.found).startswith(said) for f in found if f.check == "not recomputed")
    assert [f for f in found if f.check == "reward"] == []


def checks(path: Path) -> set[str]:
    return {f.check for f in audit(str(path)).findings if f.severity == "error"} & {"reward sum", "reward range"}


def test_a_score_above_one_by_rounding_is_sound(copied: Any) -> None:
    path = copied.artifact("rollouts", purpose="train")
    early, reward = pl.lit(1.0000000000000002), 1.0000000000000002 + 0.5 * pl.col("reward_late")
    copied.rewrite(path, PART, reward_early=early, reward=reward)
    assert checks(path) == set()
    copied.rewrite(path, PART, reward_early=early + 1e-6, reward=reward + 1e-6)
    assert checks(path) == {"reward range"}


def test_a_function_of_the_users_may_not_apply_to_a_row_and_a_built_in_always_does(copied: Any) -> None:
    path = copied.artifact("rollouts", purpose="train")
    copied.rewrite(path, PART, reward_early=pl.lit(None, pl.Float64), reward=0.5 * pl.col("reward_late"))
    assert checks(path) == {"reward sum"}

    def own(content: dict[str, Any]) -> None:
        content["recipe"]["reward"][0].update(grader="mine:early", args={})

    copied.remake(path, own)
    assert checks(path) == set()
