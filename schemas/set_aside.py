"""Rows of a source of prompts or completions that did not fit: kept, so that nothing is lost."""

import dataframely as dy

from schemas.table import Table, column


class SetAside(Table):
    """One row that was not taken in.

    Written beside prompts where the source has `bad_rows: set_aside`, and beside imported rollouts.

    Example:
        {
            "place": "line 3",
            "why": "answer is null",
            "content": '{"answer": null, "question": "18+40-2"}',
        }
    """

    place = column(
        dy.String,
        "Where it stands: line 3 of a JSONL file (from 1), row 2 of a table (from 0); of an import, behind the file's name.",
        primary_key=True,
    )
    why = column(dy.String, "The reasons.")
    content = column(dy.String, "The row: a line as it came, or its values as a JSON object.", nullable=True)
