"""Remarks: what graders said beside their scores."""

import dataframely as dy

from schemas.table import Table, column


class Remarks(Table):
    """What a grader said of one completion beside its score, such as a judge's answer.

    Written beside the rollouts, one file a shard, for the completions of which something was said.

    Example:
        {
            "group_id": "arith-train-02269@4f37dbfe",
            "sample_index": 7,
            "component": "reward_judge",
            "text": "The sum is right, but no step is shown. SCORE: 0.5",
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    component = column(dy.String, "The column of the score, such as reward_judge.", primary_key=True)
    text = column(dy.String, "What the grader said, as it came.")
