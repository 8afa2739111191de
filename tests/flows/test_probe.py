"""`rollbook probe`, and what `check` says of graders: tables, JSON, exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Rollbook = Callable[..., Any]
ROWS = [{"question": f"{n}+1", "answer": str(n + 1)} for n in range(20, 60)]


@pytest.fixture
def graded(project: Path) -> Callable[..., Path]:
    """graded({"grader": …}, reward="…"): the project with these components, and reward.py."""

    def make(*components: dict[str, Any], reward: str = "") -> Path:
        (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        (project / "reward.py").write_text(reward, encoding="utf-8")
        config = yaml.safe_load((project / "run.yaml").read_text(encoding="utf-8"))
        config["reward"]["components"] = list(components)
        (project / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return project

    return make


ANYWHERE = "def score(completion, answer):\n    return float(answer in completion)\n"
ZERO = "def score(completion, answer):\n    return 0\n"


def test_a_sound_grader_ends_with_0(rollbook: Rollbook, graded: Callable[..., Path]) -> None:
    graded({"grader": "regex", "args": {"pattern": "A:(-?[0-9]+)$"}})
    said = rollbook("probe", "run.yaml")
    assert (said.status, said.out.splitlines()[-1], said.err) == (0, "ok", "")
    assert "one more, one less             40       0  0.0 %      0  ok" in said.out
    assert "40 prompts; where nothing else is said, answers are written as A:{answer}" in said.out


def test_a_grader_that_takes_lists_ends_with_1(rollbook: Rollbook, graded: Callable[..., Path]) -> None:
    graded({"grader": "reward:score"}, reward=ANYWHERE)
    said = rollbook("probe", "run.yaml", "--rows", "10")
    assert said.status == 1
    assert "problem:   five answers in one: earns on 10 of 10 prompts, and should on none" in said.out
    assert "EARNS" in said.out and "five answers in one: '\\\\boxed{21, 19, 20, 22, 23}' for '21' earned 1" in said.out
    found = json.loads(rollbook("probe", "run.yaml", "--rows", "10", "--json").out)
    assert (found["ok"], found["rows"], found["skipped"], found["components"]) == (False, 10, {}, ["reward_score"])
    kinds = {tally["kind"]: tally for tally in found["tallies"]}
    assert kinds["five answers in one"]["verdict"] == "EARNS" and kinds["five answers in one"]["share"] == 1.0
    assert kinds["nothing at all"]["example"] is None


def test_what_cannot_be_probed_is_told(rollbook: Rollbook, graded: Callable[..., Path]) -> None:
    graded(
        {
            "grader": "judge",
            "args": {"url": "http://localhost:1/v1", "model": "m", "template": "{completion}", "pattern": "([0-9])"},
        }
    )
    said = rollbook("probe", "run.yaml")
    assert (said.status, said.out) == (2, "")
    assert "reward: reward_judge is not asked: every question goes to a server" in said.err
    graded({"grader": "exact_match"})
    said = rollbook("probe", "run.yaml", "--written", "Final:")
    assert said.status == 2 and "'Final:': has no {answer} in it, where the answer goes" in said.err


def test_check_says_what_graders_gave(rollbook: Rollbook, graded: Callable[..., Path]) -> None:
    graded({"grader": "exact_match"})
    said = rollbook("check", "run.yaml")
    assert said.status == 0
    assert "graded     reward_exact_match: the right answer 1 ('21'), an empty one 0, on 3 prompts" in said.out.splitlines()


def test_prompts_that_a_grader_cannot_score_are_told_before_any_is_asked(rollbook: Rollbook, graded: Callable[..., Path]) -> None:
    graded({"grader": "reasoning_gym"})
    for command in ("check", "probe", "run"):
        said = rollbook(command, "run.yaml")
        assert said.status == 2 and said.out == ""
        assert "train.jsonl: reward.components.0 (reasoning_gym): prompts that reasoning_gym cannot score:" in said.err
    graded({"grader": "reasoning_gym", "args": {"dataset": "chain_sums"}})
    for command in ("check", "probe", "run"):
        said = rollbook(command, "run.yaml")
        assert said.status == 2 and "did you mean chain_sum" in said.err


def test_check_and_init_warn_of_a_reward_that_is_0_for_everything(rollbook: Rollbook, graded: Callable[..., Path]) -> None:
    project = graded({"grader": "reward:score"}, reward=ZERO)
    said = rollbook("check", "run.yaml")
    assert said.status == 0
    assert "warning    reward.components.0 (reward:score): gives an empty answer as much as the right one: 0 and 0" in said.out
    assert said.out.splitlines()[-1].endswith(" warnings; as graders answer now, there may be nothing to learn from")
    (project / "run.yaml").unlink()
    base = str(Path(__file__).resolve().parents[2] / "data/base")
    said = rollbook("init", "--yes", "--model", base, "--data", "train.jsonl", "--heldout", "heldout.jsonl", "--reward", "own")
    assert said.status == 0
    assert "warning    reward.components.0 (reward:score): gives an empty answer as much as the right one" in said.out
