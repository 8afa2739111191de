"""Scores: logprobs of stored completions under a named checkpoint, computed with the trainer's own kernels."""

import dataframely as dy

from schemas.table import Table, column


class Scores(Table):
    """One completion of a rollouts artifact, scored.

    `logprobs` has one value for each of the row's `completion_token_ids`, in its order. Files are as those of the rollouts. The
    manifest's parents name the checkpoint that scored.

    Example:
        {
            "group_id": "arith-train-02269@4f37dbfe",
            "sample_index": 7,
            "logprobs": [-0.288452, -2.3841855e-07, -3.5762784e-07, -0.6509775, -2.1304953, -1.3589766e-05],
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    logprobs = column(
        dy.List,
        "log p of each completion token under the scoring checkpoint, at the temperature it was sampled with.",
        dy.Float32(max=0.0),
        unit="nats",
    )
