"""Whether a snapshot's behavior logprobs are those of the density its tokens were drawn from."""

from __future__ import annotations

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.cell import BEHAVIOR
from pipeline.common.errors import UserError
from pipeline.store import Artifact
from pipeline.store.tables import scan_table
from schemas import Rollouts

SCORE = "Score them with the checkpoint that generated them: `rollbook import ROLLOUTS --store STORE --logprobs-from CHECKPOINT`"
PROBLEMS = {
    "absent": f"have none. {SCORE}",
    "greedy": "were drawn at temperature 0, where the sampling density is a point. Generate with a temperature above 0",
    "cut": "were drawn with top_p, top_k or min_p, and the cut support was not recorded. Generate with top_p=1, top_k=0, min_p=0",
    "raw": "hold raw logprobs at a temperature that is not 1. Generate with processed logprobs",
    "unknown": f"hold logprobs of an unknown mode. {SCORE}",
    "unsaid": "do not say at which temperature, top_p, top_k and min_p they were drawn. Fill in those columns",
}


def has_behavior(rollouts: Artifact, kept: pl.DataFrame, algorithm: Algorithm) -> bool:
    """Whether all kept rows have behavior logprobs that a ratio may be taken against.

    Args:
        kept: group_id and sample_index of the rows to train on.

    Raises:
        UserError: they do not, and the algorithm needs them; says what they are and how to get them.
    """
    scalars = scan_table(rollouts, Rollouts).select(
        "group_id",
        "sample_index",
        absent=pl.col("behavior_logprobs").is_null(),
        cut=(pl.col("top_p") < 1) | (pl.col("top_k") > 0) | (pl.col("min_p") > 0),
        greedy=pl.col("temperature") == 0,
        raw=(pl.col("logprobs_mode") == "raw_logprobs") & (pl.col("temperature") != 1),
        unknown=pl.col("logprobs_mode") == "unknown",
        unsaid=pl.any_horizontal(pl.col("temperature", "top_p", "top_k", "min_p").is_null())
        & (pl.col("logprobs_mode") != "scored"),
    )
    rows = scalars.collect().join(kept, on=["group_id", "sample_index"], how="semi")
    for column, problem in PROBLEMS.items():
        count = int(rows[column].sum() or 0)
        if count and BEHAVIOR in algorithm.needs:
            raise UserError(
                f"{rollouts.path}: {algorithm.name} needs behavior_logprobs, but {count} of {len(rows)} kept completions "
                f"{problem}. Methods without a ratio (such as reinforce) can train on them"
            )
        if count:
            return False
    return True
