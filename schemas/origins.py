"""Origins: where imported completions come from, and what their sources had that the rollouts have no column for."""

import dataframely as dy

from schemas.table import Table, column, one_of

TOKENS = ("source", "retokenized")


class Origins(Table):
    """One completion of imported rollouts.

    Written beside them by an import, one file a shard: where each row stood in the user's files.

    Example:
        {
            "group_id": "sum-3@19ab0c42",
            "sample_index": 0,
            "file": "sums.jsonl",
            "number": 3,
            "tokens": "retokenized",
            "rest": '{"judged_by": "hand"}',
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    file = column(dy.String, "Name of the source file; the recipe has its sha256.")
    number = column(dy.Int64, "Line of a JSONL file (from 1), or row of a Parquet file (from 0).", min=0)
    tokens = column(
        dy.String,
        "source: token ids as the source has them. retokenized: made from text, so perhaps not those that were drawn.",
        check=one_of(*TOKENS),
    )
    rest = column(dy.String, "The source's columns that have no place in the rollouts, as a JSON object.", nullable=True)
