"""Evaluation: how a checkpoint did on held-out prompts, completion by completion."""

import dataframely as dy

from schemas.table import Table, column, one_of


class Evaluation(Table):
    """One graded completion of a held-out prompt.

    Written by evaluate from two rollouts artifacts, the sampled and the greedy answers of one checkpoint.

    Example:
        {
            "prompt_id": "arith-heldout-00000",
            "mode": "sampled",
            "sample_index": 1,
            "reward": 1.0,
            "solved": True,
            "completion_tokens": 31,
            "status": "ok",
        }
    """

    prompt_id = column(dy.String, "The prompt's name.", primary_key=True)
    mode = column(dy.String, "sampled, or greedy (temperature 0).", check=one_of("sampled", "greedy"), primary_key=True)
    sample_index = column(dy.Int32, "Number of the completion, from 0.", primary_key=True, min=0)
    reward = column(dy.Float64, "Its reward. Null if grading failed.", nullable=True)
    solved = column(dy.Bool, "Whether the reward reached the threshold; a failed grading counts as unsolved.")
    completion_tokens = column(dy.Int32, "Its length.", unit="tokens")
    status = column(dy.String, "As in the rollouts.")
