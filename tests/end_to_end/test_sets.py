"""Held-out sets on the real thing: other graders of the same answers, and other prompts; the audit knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.record import load_run

pytestmark = pytest.mark.slow


def test_sets_judge_a_run_that_is_there(served: Any, rollbook: Any, finished: Any, write_config: Any, tmp_path: Path) -> None:
    run = finished.without(tmp_path / "judged")
    sums = [{"question": f"{a}+{b}", "answer": str(a + b)} for a, b in ((1, 2), (3, 4), (5, 6))]
    (tmp_path / "easy.jsonl").write_text("\n".join(map(json.dumps, sums)), encoding="utf-8")
    heldout = load_run(run).config.data.heldout.model_dump(mode="json", exclude_none=True)
    number = {"components": [{"grader": "regex", "args": {"pattern": "(-?[0-9]+)$"}}]}
    sets = [
        {"name": "loose", "prompts": heldout, "reward": number, "solved_by": "regex"},
        {"name": "easy", "prompts": {"path": str(tmp_path / "easy.jsonl")}, "samples": 4, "greedy": False},
    ]
    evaluate = {"samples": 2, "k": [1, 2], "bootstrap": 20_000, "sets": sets}
    config = write_config(tmp_path / "sets.yaml", evaluate=evaluate)
    judged = served("run", config, "--set", f"run_dir={run}")
    assert judged.status == 0, judged.err
    assert "set:       easy: pass@1" in judged.out and "grade 0 loose" in judged.err

    steps = load_run(run).iterations
    assert [sorted(step.sets) for step in steps] == [["easy", "loose"]] * 2
    assert all(step.sets["loose"].evaluation.summary["pass_at"]["1"]["value"] is not None for step in steps)
    assert steps[0].sets["easy"].answers.greedy is None
    audit = rollbook("audit", run, "--deep")
    assert audit.status == 0, audit.out
