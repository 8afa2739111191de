"""Scores: logprobs of stored completions under a named checkpoint, computed with the trainer's own kernels."""

import dataframely as dy

from schemas.table import Table, column


class Scores(Table):
    """One completion of a rollouts artifact, scored."""

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    logprobs = column(
        dy.List,
        "log p of each completion token under the scoring checkpoint, at the temperature it was sampled with.",
        dy.Float32(max=0.0),
        unit="nats",
    )
