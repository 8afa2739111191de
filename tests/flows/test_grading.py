"""`rollbook grade`: wrong input is one answer that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import Request, Store
from pipeline.store.work import Work

Rollbook = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where a rollouts artifact lies; enough of one for what is refused before it is read."""
    with Store(tmp_path / "store").work(Request("rollouts", "generate/1", {"reward": []})) as work:
        assert isinstance(work, Work)
        return str(work.finish({}).path.relative_to(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which graders? Name one with --grader (and --args), or a YAML file that has them with --config"),
        (["--grader", "regx"], "no such grader; did you mean regex?"),
        (["--grader", "regex"], "needs a value for args.pattern"),
        (["--grader", "regex", "--args", "A:(.+)"], "--args A:(.+): expected a mapping such as '{pattern: \"A:(.+)\"}'"),
        (["--grader", "regex", "--args", "{pattern: '('}"], "'(' is not a regular expression"),
        (["--grader", "from_file", "--args", "{path: absent.csv}"], "absent.csv: no such file"),
        (["--grader", "regex", "--config", "x.yaml"], "--config and --grader are two ways to name graders; choose one"),
        (["--config", "absent.yaml"], "absent.yaml: no such file"),
        (["--config", "empty.yaml"], "empty.yaml: has no section `reward`"),
        (["--config", "wrong.yaml"], "wrong.yaml: reward.componets: unknown key; did you mean `components`?"),
        (["--sheet", "s.csv", "--grader", "regex"], "--sheet: writes completions to label, and needs no --config or --grader"),
    ],
)
def test_wrong_input_is_answered(rollbook: Rollbook, tmp_path: Path, place: str, options: list[str], message: str) -> None:
    (tmp_path / "empty.yaml").write_text("name: x\n", encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text("reward: {componets: []}\n", encoding="utf-8")
    said = rollbook("grade", place, *options)
    assert said.status == 2 and message in said.err and "Traceback" not in said.err


def test_only_rollouts_are_graded(rollbook: Rollbook, tmp_path: Path) -> None:
    with Store(tmp_path / "store").work(Request("checkpoint", "import/1", {})) as work:
        assert isinstance(work, Work)
        made = work.finish({})
    said = rollbook("grade", str(made.path), "--grader", "exact_match")
    assert said.status == 2 and "a checkpoint artifact; name a directory in rollouts/ of a store" in said.err
    said = rollbook("grade", "nowhere", "--grader", "exact_match")
    assert said.status == 2 and "nowhere: not a finished artifact" in said.err
