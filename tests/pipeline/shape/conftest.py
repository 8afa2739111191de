"""Rollouts on disk, from a status and a reward per completion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import Artifact, Request, Store, Work
from schemas import Rollouts

Completions = list[tuple[str, float | None]]


@pytest.fixture
def make_rollouts(tmp_path: Path) -> Callable[..., Artifact]:
    """make_rollouts({file: {group: [(status, reward), ...]}}): an artifact of one file per entry."""

    def make(files: dict[str, dict[str, Completions]]) -> Artifact:
        with Store(tmp_path).work(Request("rollouts", "generate/1", {"files": files})) as work:
            assert isinstance(work, Work)
            for name, groups in files.items():
                rows = [row_of(group, sample, *one) for group, all in groups.items() for sample, one in enumerate(all)]
                types = {column: kind.dtype for column, kind in Rollouts.columns().items()}
                work.write_table(name, pl.DataFrame(rows, schema=types), Rollouts)
            return work.finish({"groups": sum(len(groups) for groups in files.values())})

    return make


def row_of(group: str, sample: int, status: str, reward: float | None) -> dict[str, Any]:
    failed = status.endswith("error")
    return {
        **dict.fromkeys(Rollouts.columns()),
        "group_id": group,
        "sample_index": sample,
        "prompt_id": group,
        "prompt_token_ids": [1],
        "completion_token_ids": [] if status == "engine_error" else [2, 3],
        "prompt_text": "",
        "completion_text": "",
        "policy_id": "base",
        "policy_version": 0,
        "source": "self",
        "logprobs_mode": "processed_logprobs",
        "engine": "none",
        "status": status,
        "reward": reward,
        "error": "no grade" if failed else None,
    }
