"""Prompts: what a policy is asked."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, rule


class Prompts(Table):
    """One question with its reference answer.

    Made from the user's source once for a run, in the source's order, without the rows that do not fit.

    Example:
        {
            "prompt_id": "arith-train-02269",
            "question": "18+40-2",
            "answer": "56",
            "prompt_text": "Q:18+40-2=",
            "metadata": '{"terms": 3}',
        }
    """

    prompt_id = column(dy.String, "Unique name of the prompt.", primary_key=True, min_length=1)
    question = column(dy.String, "The question as the dataset has it.")
    answer = column(dy.String, "The reference answer that graders compare with.")
    prompt_text = column(dy.String, "The text given to the model: the question in its template.")
    metadata = column(dy.String, "The dataset's other columns, as a JSON object.", nullable=True)

    @rule
    def question_is_not_empty(cls) -> pl.Expr:
        return pl.col("question").str.strip_chars().str.len_chars() > 0

    @rule
    def answer_is_not_empty(cls) -> pl.Expr:
        return pl.col("answer").str.strip_chars().str.len_chars() > 0
