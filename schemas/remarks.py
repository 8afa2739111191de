"""Remarks: what graders said beside their scores."""

import dataframely as dy

from schemas.table import Table, column


class Remarks(Table):
    """What a grader said of one completion beside its score, such as a judge's answer."""

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    component = column(dy.String, "The column of the score, such as reward_judge.", primary_key=True)
    text = column(dy.String, "What the grader said, as it came.")
