"""Episodes in the report: turns, calls and failed calls, who wrote the tokens, and what becomes of the k-th turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from pipeline.look.report import figures
from pipeline.look.report.colors import SERIES, role_of
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Key, Panel
from pipeline.look.turns import has_credits
from pipeline.run.state import Iteration, Run
from pipeline.store import Artifact, scan_table
from schemas import Credits, Turns

KEY = ("group_id", "sample_index")
MOST_TURNS = 50
"""Turns of an episode that are told apart."""


def episode_panels(run: Run) -> list[Panel]:
    """What an episode has of turns and calls, and of tokens; [] where no environment takes part."""
    found = {
        step.iteration: step.answers.rollouts.summary
        for step in run.iterations
        if step.answers and step.answers.rollouts and "episodes" in step.answers.rollouts.summary
    }
    if not found:
        return []
    counts = {"turns": "turns", "calls": "calls", "calls that failed": "tool_errors"}
    tokens = {"drawn by the policy": "drawn_tokens", "from the environment": "given_tokens"}
    ends = {number: summary["episodes"]["turn_statuses"] for number, summary in found.items()}
    last = ends[max(ends)]
    cut = ", ".join(f"{count:,} {status}" for status, count in last.items() if status != "ok") or "none was cut"
    return [
        _panel("episode-turns", "Turns and calls", "per episode", found, counts, f"Turns of the last iteration: {cut}."),
        _panel("episode-tokens", "Tokens of an episode", "tokens", found, tokens, "Only drawn tokens are trained on."),
        *turn_panels(run),
    ]


def turn_panels(run: Run) -> list[Panel]:
    """What becomes of the policy's first turn, its second, …: [] where no episode has more than one."""
    steps = [step for step in run.iterations if step.answers and step.answers.rollouts and _has_turns(step.answers.rollouts)]
    if not steps:
        return []
    first, last = (by_number(step) for step in (steps[0], steps[-1]))
    if len(last) < 2:
        return []
    iterations = dict(zip((f"iteration {step.iteration}" for step in (steps[0], steps[-1])), (first, last), strict=True))
    lengths = {name: (_values(rows["k"]), _values(rows["tokens"])) for name, rows in iterations.items()}
    wanted = {"episodes that have it": "reached", "rewarded": "rewarded", "cut or void": "failed"}
    if "credited" in last.columns:
        wanted["with an advantage other than 0"] = "credited"
    shares = {label: (_values(last["k"]), 100 * _values(last[column])) for label, column in wanted.items()}
    place, about = "turn of the policy", f"iteration {steps[-1].iteration}"
    return [
        _lines("turn-lengths", "Tokens of a turn", "tokens", lengths, "Means over the episodes that have such a turn.", place),
        _lines("turn-shares", "Turns by their number", "%", shares, f"Of the {about}'s turns of each number.", place, " %"),
    ]


def by_number(step: Iteration) -> pl.DataFrame:
    """Figures of the policy's turns by their number `k`, from 1: mean tokens, and shares of episodes or of turns.

    Returns:
        k, tokens, reached (of the episodes), rewarded, failed and, where turns have advantages of their own, credited (of the
        k-th turns).
    """
    assert step.answers is not None and step.answers.rollouts is not None
    spoken = scan_table(step.answers.rollouts, Turns).filter(pl.col("who") == "policy")
    numbered = spoken.with_columns(k=pl.col("turn").rank("ordinal").over(*KEY)).filter(pl.col("k") <= MOST_TURNS)
    shares = {"rewarded": pl.col("reward").fill_null(0.0) > 0, "failed": pl.col("status") != "ok"}
    if step.shaped is not None and has_credits(step.shaped):
        earned = scan_table(step.shaped, Credits).select(*KEY, "turn", "advantage")
        numbered = numbered.join(earned, on=(*KEY, "turn"), how="left")
        shares["credited"] = pl.col("advantage").fill_null(0.0) != 0
    figures = {name: share.mean() for name, share in shares.items()}
    rows = numbered.group_by("k").agg(turns=pl.len(), tokens=pl.col("length").mean(), **figures).sort("k")
    found = rows.collect(engine="streaming")
    return found.with_columns(reached=pl.col("turns") / pl.col("turns").max()).drop("turns")


def _has_turns(rollouts: Artifact) -> bool:
    return any(file.table == f"{Turns.title()}/{Turns.version}" for file in rollouts.files)


def _values(column: pl.Series) -> Values:
    return np.asarray(column.to_numpy(), dtype=float)


def _panel(
    name: str, title: str, unit: str, found: Mapping[int, Mapping[str, Any]], wanted: Mapping[str, str], caption: str
) -> Panel:
    x = np.array(list(found), dtype=float)
    lines: dict[str, Values] = {
        label: np.array([summary["episodes"][figure] / summary["completions"] for summary in found.values()])
        for label, figure in wanted.items()
    }
    points = {label: (x, values) for label, values in lines.items()}
    return _lines(name, title, unit, points, f"Means of the training rollouts. {caption}", "iteration")


def _lines(
    name: str, title: str, unit: str, lines: Mapping[str, tuple[Values, Values]], caption: str, x_label: str, behind: str = ""
) -> Panel:
    """One line for each name; of each its places on the horizontal axis, and its values there."""
    colors = SERIES[: len(lines)]
    places = np.concatenate([x for x, _ in lines.values()])

    def draw(axes: Axes) -> None:
        for (x, values), color in zip(lines.values(), colors, strict=True):
            figures.line(axes, x, values, color)
        figures.whole_numbers(axes, float(places.min()), float(places.max()))

    keys = tuple(Key(label, role_of(color)) for label, color in zip(lines, colors, strict=True))
    readings = [Readout(key.label, key.role, *lines[key.label]) for key in keys]
    picture = figures.svg(name, draw, x_label=x_label, readings=readings, unit=behind)
    return Panel(title, unit, picture, caption, keys)
