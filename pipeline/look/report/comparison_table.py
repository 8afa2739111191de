"""A comparison in the terminal: one row per algorithm, best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.common.claims import few_questions, few_seeds
from pipeline.common.text import ABSENT, interval, json_safe, number, percent
from pipeline.store import Artifact, read_table
from schemas import Comparison, ComparisonTiming


def comparison_table(comparison: Artifact) -> Table:
    """One row per algorithm with its figures after the last epoch, means over seeds; it fits 80 columns.

    `seeds` is the spread of pass@1 over them, `gain` its difference from the policy before training, `over SFT` that from the
    baseline, in points.
    """
    several, baseline = len(comparison.recipe["seeds"]) > 1, "baseline" in comparison.recipe
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name in _cells({}, several, baseline):
        left = name == "algorithm"
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    before = {"label": "before training", **comparison.summary["before"]}
    for row, style in ((before, "dim"), *((row, "") for row in comparison.summary["algorithms"])):
        table.add_row(*(Text(cell, style) for cell in _cells(row, several, baseline).values()))
    return table


def _cells(row: dict[str, Any], several: bool, baseline: bool) -> dict[str, str]:
    failed = row.get("seeds") == 0
    return {
        "algorithm": row.get("label", ""),
        "pass@1": "failed" if failed else interval(*ends(row, "pass_at_1")),
        **({"seeds": spread(row)} if several else {}),
        "gain": points(row.get("gain")),
        **({"over SFT": points(row.get("over_baseline"))} if baseline else {}),
        **({} if several else {"greedy": percent(row.get("greedy"))}),
        "tokens": number(row.get("completion_tokens_mean")),
        "KL": number(row.get("kl_behavior")),
    }


def ends(row: dict[str, Any], name: str) -> tuple[float | None, float | None, float | None]:
    """A figure and the ends of its interval."""
    return row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")


def spread(row: dict[str, Any]) -> str:
    """Least and greatest pass@1 of single seeds, in percent.

    >>> spread({"pass_at_1_least": 0.405, "pass_at_1_greatest": 0.46})
    '40.5–46.0'
    """
    least, greatest = row.get("pass_at_1_least"), row.get("pass_at_1_greatest")
    return ABSENT if least is None or greatest is None else f"{100 * least:.1f}–{100 * greatest:.1f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points.

    >>> points(0.1234), points(-0.05)
    ('+12.3', '-5.0')
    """
    return ABSENT if value is None else f"{100 * value:+.1f}"


@dataclass(frozen=True)
class Failure:
    """Trials of one algorithm that failed alike."""

    title: str
    why: str


def failures(comparison: Artifact) -> list[Failure]:
    rows = read_table(comparison, Comparison, ["label", "seed", "error"]).drop_nulls("error")
    alike = rows.group_by("label", "error", maintain_order=True).agg(pl.col("seed").unique(maintain_order=True))
    return [
        Failure(f"{label}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}", error)
        for label, error, seeds in alike.iter_rows()
    ]


def cautions(comparison: Artifact, heldout: Artifact | None) -> list[str]:
    """What the ranking cannot carry.

    Args:
        heldout: the prompts that judged it, where they are there.
    """
    questions = heldout.summary.get("prompts") if heldout else None
    said = few_seeds(len(comparison.recipe["seeds"]), len(comparison.summary["algorithms"]))
    few = few_questions(questions) if isinstance(questions, int) else None
    return [caution for caution in (said, few) if caution]


def as_json_rows(comparison: Artifact) -> dict[str, Any]:
    """The policy before training, the ranking, the baseline of `over_baseline`, and every trial with its wall times."""
    key = ["label", "seed", "epoch"]
    trials = read_table(comparison, Comparison)
    timed = trials.join(read_table(comparison, ComparisonTiming), on=key, how="left", maintain_order="left")
    summary = comparison.summary
    rows = {"id": comparison.id, "before": summary["before"], "baseline": comparison.recipe.get("baseline")}
    rows |= {"algorithms": summary["algorithms"], "trials": timed.to_dicts()}
    safe: dict[str, Any] = json_safe(rows)
    return safe
