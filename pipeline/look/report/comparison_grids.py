"""The tables of a comparison's page. Every cell has a value to sort by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from markupsafe import Markup

from pipeline.common.text import ABSENT, count, duration, interval, number, percent
from pipeline.look.report.beside import MUCH
from pipeline.look.report.colors import RULE, SERIES, role_of
from pipeline.look.report.comparison_cells import Scale, bar_cell, breakable, interval_cell
from pipeline.look.report.comparison_curves import look_of
from pipeline.look.report.comparison_data import STAGES, Compared
from pipeline.look.report.comparison_table import ends, spread

BARS = {"train": SERIES[0], "generate": SERIES[1], "other": RULE}


@dataclass(frozen=True)
class GridCell:
    """What a cell shows, and what it is sorted by."""

    shown: str | Markup
    by: float | str | None
    """None comes last."""


@dataclass(frozen=True)
class GridHead:
    """A column's name, and an axis below it for a column of pictures."""

    name: str
    axis: Markup | None = None
    text: bool = False
    """Whether the column holds texts, which stand left and are first sorted from A."""


@dataclass(frozen=True)
class SortableGrid:
    heads: tuple[GridHead, ...]
    rows: Sequence[Sequence[GridCell]]


def ranking_grid(compared: Compared) -> SortableGrid:
    """One row per algorithm: its held-out answers after the last epoch, pass@1 as a picture too."""
    before, baseline = compared.before, compared.artifact.recipe.get("baseline")
    judged = [row for row in compared.ranking if row["pass_at_1"] is not None]
    names = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "pass_at_1_least", "pass_at_1_greatest")
    scale = Scale.over([row[name] for row in judged for name in names] + [before.get("pass_at_1")])
    heads = (
        GridHead("algorithm", text=True),
        GridHead("pass@1, %", scale.axis(100)),
        GridHead("pass@1 [95 %]"),
        *([GridHead("seeds")] if len(compared.seeds) > 1 else []),
        GridHead("gain"),
        *([GridHead(f"over {baseline}")] if baseline else []),
        *map(GridHead, ("behind the best", "greedy accuracy", "mean reward", "tokens per answer")),
    )
    return SortableGrid(heads, [_ranking_row(compared, row, scale) for row in compared.ranking])


def _ranking_row(compared: Compared, row: dict[str, Any], scale: Scale) -> list[GridCell]:
    value, low, high = ends(row, "pass_at_1")
    picture: GridCell = GridCell("failed", None)
    if value is not None:
        singles = _finals(compared, row["label"], "pass_at_1")
        role = look_of(compared.labels.index(row["label"])).role
        picture = GridCell(
            interval_cell(scale, value, (low, high), singles if len(singles) > 1 else [], compared.before.get("pass_at_1"), role),
            value,
        )
    return [
        GridCell(breakable(row["label"]), row["label"]),
        picture,
        GridCell(interval(value, low, high), value),
        *([GridCell(spread(row), row["pass_at_1_least"])] if len(compared.seeds) > 1 else []),
        GridCell(_difference(row, "gain", "+"), row["gain"]),
        *([GridCell(_difference(row, "over_baseline", "+"), row["over_baseline"])] if "over_baseline" in row else []),
        GridCell(_difference(row, "behind", ""), row["behind"]),
        GridCell(percent(row["greedy"]), row["greedy"]),
        *(GridCell(number(row[name]), row[name]) for name in ("reward_mean", "completion_tokens_mean")),
    ]


_LAST = {
    "entropy": ("entropy, nats", number),
    "kl_behavior": ("KL to the behavior policy", number),
    "ess": ("effective sample size", number),
    "clip_fraction_positive": ("clipped where A\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}0", percent),
    "clip_fraction_negative": ("clipped where A\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0", percent),
    "ratio_q01": ("ratio π/μ, 1 % quantile", number),
    "ratio_q99": ("ratio π/μ, 99 % quantile", number),
    "grad_norm": ("gradient norm", number),
    "loss": ("loss", number),
    "steps": ("optimizer steps", number),
}
"""Figures of the last epoch: heading and how they are written."""


def last_epoch_grid(compared: Compared) -> SortableGrid:
    """One row per algorithm, in the order of the ranking: what its training was like in the last epoch."""
    heads = (GridHead("algorithm", text=True), *(GridHead(name) for name, _ in _LAST.values()))
    rows = [
        [
            GridCell(breakable(row["label"]), row["label"]),
            *(GridCell(write(row[name]), row[name]) for name, (_, write) in _LAST.items()),
        ]
        for row in compared.ranking
    ]
    return SortableGrid(heads, rows)


def _difference(row: dict[str, Any], name: str, sign: str) -> str:
    """A difference of shares with its interval, in points."""
    there = [value for value in ends(row, name) if value is not None]
    if len(there) < 3:
        return ABSENT
    value, low, high = (f"{100 * value:{sign}.1f}" for value in there)
    return f"{value} [{low}, {high}]"


def _finals(compared: Compared, label: str, column: str) -> list[float]:
    """A figure of each seed after the last epoch."""
    last = compared.artifact.recipe["train"]["epochs"]
    rows = compared.trials.filter(pl.col("label") == label, pl.col("epoch") == last)
    values: list[float] = rows[column].drop_nulls().to_list()
    return values


def cost_grid(compared: Compared) -> SortableGrid:
    """Length of the held-out answers and wall time, means over seeds after the last epoch."""
    labels = compared.ranked
    lengths = {label: _finals(compared, label, "completion_tokens_mean") for label in labels}
    start = compared.before.get("completion_tokens_mean")
    length_scale = Scale.over([value for values in lengths.values() for value in values] + [start])
    times = {label: {stage: _mean(_finals(compared, label, f"{stage}_seconds")) for stage in STAGES} for label in labels}
    totals = {label: sum(value or 0 for value in parts.values()) for label, parts in times.items()}
    time_scale = Scale.over(list(totals.values()), from_zero=True)
    heads = (
        GridHead("algorithm", text=True),
        GridHead("response length, tokens", length_scale.axis()),
        GridHead("tokens"),
        GridHead("seconds", time_scale.axis()),
        *map(GridHead, ("train", "generate", "shape, score, evaluate", "other work, cores")),
    )
    rows = []
    for label in labels:
        role, values, parts = look_of(compared.labels.index(label)).role, lengths[label], times[label]
        mean = _mean(values)
        singles = values if len(values) > 1 else []
        picture = interval_cell(length_scale, mean, (None, None), singles, start, role) if mean is not None else ABSENT
        other = sum(parts[stage] or 0 for stage in ("shape", "score", "evaluate"))
        pieces = {"train": parts["train"] or 0, "generate": parts["generate"] or 0, "other": other}
        bar = bar_cell(time_scale, [(pieces[name], role_of(color)) for name, color in BARS.items()])
        rows.append(
            [
                GridCell(breakable(label), label),
                GridCell(picture, mean),
                GridCell(number(mean), mean),
                GridCell(bar if totals[label] else ABSENT, totals[label] or None),
                *(GridCell(duration(parts[stage]), parts[stage]) for stage in ("train", "generate")),
                GridCell(duration(other) if totals[label] else ABSENT, other or None),
                _beside(compared.other_work(label)),
            ]
        )
    return SortableGrid(heads, rows)


def _beside(cores: float | None) -> GridCell:
    """How much other work ran; marked where that makes times incomparable."""
    shown = "not known" if cores is None else f"{cores:.1f}{' ✱' if cores > MUCH else ''}"
    return GridCell(shown, cores)


_TRIAL: dict[str, tuple[str, Any]] = {
    "pass_at_1": ("pass@1", percent),
    "greedy": ("greedy", percent),
    "reward_mean": ("reward", number),
    "completion_tokens_mean": ("tokens", number),
    "steps": ("steps", count),
    "loss": ("loss", number),
    "grad_norm": ("grad norm", number),
    "entropy": ("entropy", number),
    "kl_behavior": ("KL", number),
    "ess": ("ESS", number),
    "clip_fraction_positive": ("clip A>0", percent),
    "clip_fraction_negative": ("clip A<0", percent),
    "ratio_q01": ("ratio 1 %", number),
    "ratio_q50": ("median", number),
    "ratio_q99": ("ratio 99 %", number),
    "train_seconds": ("train", duration),
    "generate_seconds": ("generate", duration),
}
"""Columns of a trial: heading and how it is written."""


def trials_grid(compared: Compared) -> SortableGrid:
    """Every trial as the table Comparison has it."""
    first_heads = (GridHead("algorithm", text=True), GridHead("seed"), GridHead("epoch"), GridHead("status", text=True))
    heads = (*first_heads, *(GridHead(name) for name, _ in _TRIAL.values()))
    rows = []
    for row in compared.trials.to_dicts():
        first = [GridCell(breakable(row["label"]), row["label"])]
        first += [GridCell(str(row[name]), row[name]) for name in ("seed", "epoch", "status")]
        rows.append([*first, *(GridCell(write(row[name]), row[name]) for name, (_, write) in _TRIAL.items())])
    return SortableGrid(heads, rows)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
