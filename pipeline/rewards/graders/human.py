"""human: labels that people wrote into a sheet; see `rollbook grade --sheet`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.rewards.graders.from_file import By, FileRewards, refuse_mistyped
from pipeline.rewards.graders.from_file import source as source
from pipeline.rewards.graders.labels import KEYS, Labels, refuse_missing

WORK = ("path",)


def human(
    *,
    path: str,
    label: str = "label",
    annotator: str | None = "annotator",
    by: By = "group_id+sample_index",
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, float] | None = None,
    missing: float | None = None,
) -> FileRewards:
    """The mean of what annotators gave a completion. How far they agree is told, and recorded under provenance.

    Args:
        path: the sheet, filled in; rows without a label count as not there. Sheets of several annotators are one below the
            other in one file.
        label: column of the labels.
        annotator: column that says who labeled the row; null: one row for each completion.
        by: columns that a row is found by.
        columns: the file's names for these columns, if they are others.
        values: numbers that words stand for: {good: 1, bad: 0}.
        missing: reward of completions that nobody labeled; without it they are errors of their rows.
    """
    labels = Labels(Path(path), by, label, columns or {}, values or {}, annotator)
    grader = FileRewards(labels, by, missing)
    grader.notes = [_described(labels)]
    return grader


def check(
    *,
    path: str,
    label: str = "label",
    annotator: str | None = "annotator",
    by: str = KEYS[1],
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, float] | None = None,
    **_: object,
) -> None:
    """Raise if the file is not there or lacks a column."""
    refuse_mistyped(columns, values)
    names = [*((columns or {}).get(key, key) for key in by.split("+")), label, *([annotator] if annotator else [])]
    refuse_missing(Path(path), names)


def _described(labels: Labels) -> str:
    people = f" by {labels.annotators} annotator{'s'[: labels.annotators != 1]}" if labels.annotators else ""
    text = f"{labels.path.name}: {labels.rows:,} labels of {len(labels):,} completions{people}, {labels.without:,} rows without"
    agreement = labels.agreement()
    if agreement is None:
        return text
    alpha = "" if agreement.alpha is None else f", Krippendorff's alpha {agreement.alpha:.3f}"
    return f"{text}; {agreement.completions:,} labeled more than once, {100 * agreement.equal:.1f} % of pairs equal{alpha}"
