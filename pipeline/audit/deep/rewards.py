"""Rewards graded again: by the built-in graders, which give equal completions equal scores, in worker processes of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.audit.holdings import Held
from pipeline.audit.rows import Share, open_table
from pipeline.audit.world import World
from pipeline.config import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool
from pipeline.rewards.registry import BUILTINS
from schemas import Prompts

MOST = 20_000
"""Completions of an artifact that are graded again, spread over all of it."""
REMEDY = "Grade the completions anew: delete the artifact's directory and run again."


def check_rewards(held: Held, world: World) -> tuple[int, int] | None:
    """Report components that the graders now give another score. Returns how many completions were graded, of how many.

    None if the artifact was not graded by built-in graders, or its prompts are not here whole.
    """
    components = [component for component in held.recipe.get("reward") or () if component.get("grader") in BUILTINS]
    parent = world.shelf.parent(held, "prompts")
    if not components or parent is None or not world.intact(parent):
        return None
    prompts = _prompts(parent, world)
    graded = total = 0
    config = RewardConfig(components=tuple(RewardComponent.model_validate(part) for part in components), workers=1)
    every = max(1, -(-sum(file.rows or 0 for file in held.tables("rollouts")) // MOST))
    with RewardPool(config) as pool:
        for file in held.tables("rollouts"):
            opened = open_table(held, file, held.spot(world.ledger, file.path), Share(everything=True))
            for batch in opened.batches() if opened else ():
                rows = batch.frame.with_row_index("row", batch.first)
                total += len(rows)
                rows = rows.filter(pl.col("status").is_in(["ok", "truncated"])).gather_every(every)
                items = [RewardItem(r["completion_text"], r["answer"], prompts.get(r["prompt_id"], {})) for r in _dicts(rows)]
                graded += len(items)
                for row, result in zip(_dicts(rows), pool.submit(items).result(), strict=True):
                    _compare(held, world, file.path, row, result.components, result.error)
    return graded, total


def _dicts(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.to_dicts()


def _compare(
    held: Held, world: World, file: str, row: dict[str, Any], scores: Mapping[str, float | None], error: str | None
) -> None:
    for column, score in scores.items():
        if column in row and row[column] != score:
            found = row[column] if score is not None else f"{row[column]}; now the grader fails: {error}"
            severity: Any = "error" if score is not None else "unknown"
            held.spot(world.ledger, file).report(
                severity,
                "derivation",
                "reward",
                expected="the score that the grader gives",
                found=f"{found}, graded again {score}",
                remedy=REMEDY,
                row=row["row"],
                column=column,
            )


def _prompts(parent: Held, world: World) -> dict[str, dict[str, Any]]:
    """What graders are given of each prompt, by its id."""
    columns = {name: pl.col(name) for name in Prompts.columns()}
    frame = world.columns(parent, Prompts, columns)
    rows = [] if frame is None else frame.drop("row", "file").to_dicts()
    return {row["prompt_id"]: {**row, "metadata": json.loads(row["metadata"]) if row["metadata"] else {}} for row in rows}
