"""Whether a snapshot's behavior logprobs are those of the density its tokens were drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.cell import BEHAVIOR
from pipeline.common.errors import UserError
from pipeline.store import Artifact

SCORE = "Score them with the checkpoint that generated them: `rollbook import ROLLOUTS --store STORE --logprobs-from CHECKPOINT`"
PROBLEMS = {
    "absent": f"have none. {SCORE}",
    "greedy": "were drawn at temperature 0, where the sampling density is a point. Generate with a temperature above 0",
    "cut": "were drawn with top_p, top_k or min_p, and the cut support was not recorded. Generate with top_p=1, top_k=0, min_p=0",
    "raw": "hold raw logprobs at a temperature that is not 1. Generate with processed logprobs",
    "unknown": f"hold logprobs of an unknown mode. {SCORE}",
    "unsaid": "do not say at which temperature, top_p, top_k and min_p they were drawn. Fill in those columns",
}
KEY = ("group_id", "sample_index")
_PROBLEMATIC = {
    "absent": pl.col("behavior_logprobs").is_null(),
    "cut": (pl.col("top_p") < 1) | (pl.col("top_k") > 0) | (pl.col("min_p") > 0),
    "greedy": pl.col("temperature") == 0,
    "raw": (pl.col("logprobs_mode") == "raw_logprobs") & (pl.col("temperature") != 1),
    "unknown": pl.col("logprobs_mode") == "unknown",
    "unsaid": pl.any_horizontal(pl.col("temperature", "top_p", "top_k", "min_p").is_null())
    & (pl.col("logprobs_mode") != "scored"),
}


def has_behavior(rollouts: Artifact, kept: Iterable[tuple[Path, pl.DataFrame]], algorithm: Algorithm) -> bool:
    """Whether all kept rows have behavior logprobs that a ratio may be taken against.

    Args:
        kept: of each file of rollouts, group_id and sample_index of the rows to train on.

    Raises:
        UserError: they do not, and the algorithm needs them; says what they are and how to get them.
    """
    counts: Counter[str] = Counter()
    for path, rows in kept:
        found = pl.scan_parquet(path, glob=False).select(*KEY, **_PROBLEMATIC).collect()
        ours = found.join(rows, on=KEY, how="semi").select(pl.len().alias("rows"), *(pl.col(name).sum() for name in PROBLEMS))
        counts.update(ours.row(0, named=True))
    for column, problem in PROBLEMS.items():
        if counts[column] and BEHAVIOR in algorithm.needs:
            raise UserError(
                f"{rollouts.path}: {algorithm.name} needs behavior_logprobs, but {counts[column]} of {counts['rows']} kept "
                f"completions {problem}. Methods without a ratio (such as reinforce) can train on them"
            )
        if counts[column]:
            return False
    return True
