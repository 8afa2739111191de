"""`rollbook reward`: wrong input is one answer that says what to do, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.store import Request, Store
from pipeline.store.work import Work

GOOD: dict[str, Any] = {"name": "small", "model": {"path": "model"}, "pairs": {"rollouts": ["store/rollouts/absent"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "store/rollouts/absent: not a finished artifact"),
        ({"pairs": {"rollouts": ["CHECKPOINT"]}}, "a checkpoint artifact; name a directory in rollouts/ of a store"),
        ({"pairs": {}}, "pairs.rollouts: missing, and it has no default"),
        ({"train": {"epoch": 2}}, "train.epoch: unknown key; did you mean `epochs`?"),
        ({"name": "../elsewhere"}, "name: String should match pattern"),
    ],
)
def test_wrong_input_is_answered(rollbook: Callable[..., Any], project: Path, changes: dict[str, Any], message: str) -> None:
    with Store(project / "store").work(Request("checkpoint", "import/1", {})) as work:
        assert isinstance(work, Work)
        made = str(work.finish({}).path)
    text = yaml.safe_dump({**GOOD, **changes}).replace("CHECKPOINT", made)
    (project / "reward.yaml").write_text(text, encoding="utf-8")
    said = rollbook("reward", "reward.yaml")
    assert said.status == 2 and message in said.err and "Traceback" not in said.err
    assert not (project / "rewards").exists()


def test_a_file_that_is_not_there_is_answered(rollbook: Callable[..., Any], tmp_path: Path) -> None:
    said = rollbook("reward", "reward.yaml")
    assert said.status == 2 and "reward.yaml: no such config file" in said.err
