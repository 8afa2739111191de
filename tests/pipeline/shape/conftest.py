"""Rollouts on disk, from a status and a reward per completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
import pytest

from pipeline.generate.turns import turns_name
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts, Turns

Completions = list[tuple[str, float | None]]


@pytest.fixture
def make_rollouts(store: Store) -> Callable[..., Artifact]:
    """make_rollouts({file: {group: [(status, reward), ...]}}, {group: version}): an artifact of one file per entry.

    Sample n has n + 2 tokens; `masks` says which of them the policy drew, by "group sample"; `turns` are who, how many tokens,
    reward and status.
    """

    def make(
        files: dict[str, dict[str, Completions]],
        versions: Mapping[str, int] | None = None,
        masks: Mapping[str, list[bool]] | None = None,
        max_tokens: int | None = 10,
        turns: Mapping[str, list[tuple[str, int, float | None, str]]] | None = None,
        **more: Any,
    ) -> Artifact:
        sampling = {"sampling": {"max_tokens": max_tokens}} if max_tokens else {}
        recipe = {"files": files, "versions": versions, "masks": masks, "turns": turns, **sampling, **more}
        with store.work(Request("rollouts", "generate/1", recipe)) as work:
            if not isinstance(work, Work):
                return work
            for name, groups in files.items():
                rows = [
                    {
                        **row_of(group, sample, *one),
                        "policy_version": (versions or {}).get(group, 0),
                        "action_mask": (masks or {}).get(f"{group} {sample}"),
                    }
                    for group, all in groups.items()
                    for sample, one in enumerate(all)
                ]
                types = {column: kind.dtype for column, kind in Rollouts.columns().items()}
                work.write_table(name, pl.DataFrame(rows, schema=types), Rollouts)
                if spoken := [row for group in groups for row in turns_of(group, turns or {})]:
                    types = {column: kind.dtype for column, kind in Turns.columns().items()}
                    work.write_table(turns_name(name), pl.DataFrame(spoken, schema=types, orient="row"), Turns)
            return work.finish({"groups": sum(len(groups) for groups in files.values())})

    return make


def turns_of(group: str, turns: Mapping[str, list[tuple[str, int, float | None, str]]]) -> list[tuple[Any, ...]]:
    """Rows of `Turns`."""
    found: list[tuple[Any, ...]] = []
    for name, spoken in turns.items():
        start = 0
        for number, (who, length, reward, status) in enumerate(spoken if name.split()[0] == group else ()):
            found.append((group, int(name.split()[1]), number, start, length, who, None, reward, status))
            start += length
    return found


def row_of(group: str, sample: int, status: str, reward: float | None) -> dict[str, Any]:
    failed = status.endswith("error")
    return {
        **dict.fromkeys(Rollouts.columns()),
        "group_id": group,
        "sample_index": sample,
        "prompt_id": group,
        "prompt_token_ids": [1],
        "completion_token_ids": [] if status == "engine_error" else [7] * (sample + 2),
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
