"""A sheet for people to label completions in: opened with any spreadsheet, read back by the grader `human`."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.common.errors import UserError
from pipeline.rewards.graders.label_rows import escaped
from pipeline.rewards.graders.labels import COMPLETION, completion_hash
from pipeline.store import Artifact
from pipeline.store.files import whole_file
from pipeline.store.tables import scan_table
from schemas import Rollouts
from schemas.rollouts import ENVIRONMENT_ERROR

COLUMNS = ("group_id", "sample_index", COMPLETION, "prompt", "completion", "answer", "label", "annotator", "comment")
LONGEST_CELL = 30_000
"""Characters; spreadsheets cut a cell at 32,767. The hash is of the whole completion."""
CUT = " … [the rest is left out here]"


def write_sheet(artifact: Artifact, out: Path, rows: int | None, annotators: Sequence[str]) -> int:
    """Write completions with empty labels. Returns the number of rows.

    Args:
        out: a .csv file that is not there yet.
        rows: completions, evenly spread over all; None for all.
        annotators: one row for each of them, under their names.

    Raises:
        UserError: the file is there already (it may hold labels), or is no .csv.
    """
    if out.suffix != ".csv":
        raise UserError(f"--sheet {out}: expected a name that ends with .csv")
    if out.exists():
        raise UserError(f"--sheet {out}: there already, and may hold labels. Name another file")
    if len(set(annotators)) < len(annotators):
        raise UserError("--annotator: the same name twice")
    artifact.verify()
    frame = scan_table(artifact, Rollouts).select(
        "group_id", "sample_index", "prompt_text", "completion_text", "answer", "status"
    )
    total = sum(file.rows or 0 for file in artifact.files if file.table and file.table.startswith("rollouts/"))
    wanted = total if rows is None else min(rows, total)
    taken = pl.Series([number * total // wanted for number in range(wanted)], dtype=pl.UInt32)
    answered = ~pl.col("status").is_in(["engine_error", ENVIRONMENT_ERROR])
    chosen = frame.with_row_index("row").filter(pl.col("row").is_in(taken.implode()), answered)
    written = 0
    with whole_file(out) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for batch in chosen.collect_batches(maintain_order=True):
            for row in batch.iter_rows(named=True):
                for annotator in annotators or [""]:
                    texts = [row["prompt_text"], row["completion_text"], row["answer"] or ""]
                    cells = [row["group_id"], str(row["sample_index"]), completion_hash(row["completion_text"])]
                    writer.writerow([escaped(cell) for cell in (*cells, *map(_cut, texts), "", annotator, "")])
                    written += 1
        file.flush()
        os.fsync(file.fileno())
    return written


def _cut(text: str) -> str:
    """A text as a spreadsheet can hold it."""
    text = text.replace("\0", "\N{SYMBOL FOR NULL}")
    return text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + CUT
