"""Behavior logprobs that a source lacks, filled in from a scores artifact: a new rollouts artifact that says so.

What training compares itself with is then the scoring checkpoint. Whether that is the policy that drew the completions is for
the user to know; the rows are marked as scored either way.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from pipeline.generate.summary import read_scalars, summarize
from pipeline.generate.unknowns import LACKS_LOGPROBS, count_unknowns
from pipeline.store import Artifact, Request, Store
from pipeline.store.work import Work
from schemas import Origins, Rollouts

STAGE = "scored-logprobs/1"
KEY = ["group_id", "sample_index"]


def scored_request(rollouts: Artifact, scores: Artifact, checkpoint: Artifact) -> Request:
    kept: dict[str, Any] = {
        name: rollouts.recipe[name] for name in ("format", "declared", "rendering") if name in rollouts.recipe
    }
    recipe: dict[str, Any] = {"logprobs": {"mode": "scored", "checkpoint": checkpoint.id}, **kept}
    parents = (rollouts.as_parent("rollouts"), scores.as_parent("scores"), checkpoint.as_parent("scored_by"))
    return Request("rollouts", STAGE, recipe, parents)


def missing(rollouts: Artifact) -> int:
    """Completions without logprobs of a known mode."""
    lacking = pl.scan_parquet(rollouts.tables("rollouts"), glob=False).select(LACKS_LOGPROBS.sum())
    return int(lacking.collect().item())


def with_scores(store: Store, rollouts: Artifact, scores: Artifact, checkpoint: Artifact) -> Artifact:
    """Rollouts whose missing logprobs are those of the scores.

    Raises:
        UserError: the scores are not of these rollouts.
    """
    request = scored_request(rollouts, scores, checkpoint)
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        pairs = list(zip(rollouts.tables("rollouts"), scores.tables("scores"), strict=True))
        for path, scored in pairs:
            if not work.has_table(path.name, Rollouts):
                rows, logprobs = (pl.read_parquet(file, glob=False) for file in (path, scored))
                work.write_table(path.name, filled(rows, logprobs), Rollouts)
        for path in rollouts.tables("origins"):
            if not work.has_table(path.name, Origins):
                work.write_table(path.name, pl.read_parquet(path, glob=False), Origins)
        names = [work.path / path.name for path, _ in pairs]
        kept = ("without_reward", "without_sampling", "retokenized")
        summary = {name: rollouts.summary[name] for name in kept if name in rollouts.summary}
        marks = count_unknowns(("without_logprobs", "scored"), names, ())
        return work.finish({**summarize(read_scalars(names)), **summary, **marks})


def filled(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Rows of one file with the logprobs that they lack. An empty completion has an empty list.

    Raises:
        UserError: a completion has no scores.
    """
    joined = rows.join(scores, on=KEY, how="left", maintain_order="left")
    empty = pl.lit([], pl.List(pl.Float32))
    found = pl.when(pl.col("completion_token_ids").list.len() == 0).then(empty).otherwise(pl.col("logprobs"))
    if joined.select((LACKS_LOGPROBS & found.is_null()).any()).item():
        raise UserError("the scores are not those of these rollouts: some completions have none")
    return joined.with_columns(
        behavior_logprobs=pl.when(LACKS_LOGPROBS).then(found).otherwise(pl.col("behavior_logprobs")),
        logprobs_mode=pl.when(LACKS_LOGPROBS).then(pl.lit("scored")).otherwise(pl.col("logprobs_mode")),
    ).drop("logprobs")
