"""How many completions of a group were solved: which prompts are too hard, too easy, or teach something."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipeline.config.course import Course
from pipeline.look.report import figures
from pipeline.look.report.colors import SERIES
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Key, Panel
from pipeline.run.state import Run
from pipeline.store import Artifact, scan_table
from schemas import Rollouts
from schemas.rollouts import ends_episode

ROWS = 9
"""Most rows of the map; larger groups are cut into that many equal ranges, of which the first is 0 and the last is all."""


def solved_panel(run: Run) -> Panel | str:
    """A map of iterations by solved completions; the depth of a square is the share of groups."""
    rollouts = [(step.iteration, step.answers.rollouts) for step in run.iterations if step.answers and step.answers.rollouts]
    columns = [(number, solved) for number, part in rollouts if len(solved := _solved(part, run.config.evaluate.solved_at))]
    if not columns:
        return "No training group is graded yet, so there is no map of solved groups."
    size = max(here.generate.samples for _, here in Course(run.config).distinct())
    rows = min(size + 1, ROWS)
    table = {number: _shares(solved, rows) for number, solved in columns}

    def draw(axes: Axes) -> None:
        for number, shares in table.items():
            for row, share in enumerate(shares):
                place = (number - 0.46, row - 0.46)
                axes.add_patch(Rectangle(place, 0.92, 0.92, facecolor=SERIES[0], alpha=float(share), linewidth=0))
        axes.set_ylim(-0.6, rows - 0.4)
        axes.set_yticks(range(rows), [_label(row, rows, size) for row in range(rows)])
        axes.grid(visible=False)
        figures.whole_numbers(axes, float(min(table)), float(max(table)))

    caption = (
        "Groups by how many of their completions were solved; the more color, the larger the share. Groups at the foot and "
        "at the top have equal rewards: methods with a group baseline learn nothing from them."
    )
    x = np.array(list(table), dtype=float)
    readings = [
        Readout(
            f"{_label(row, rows, size)} solved",
            "s0",
            x,
            np.array([100 * shares[row] / shares.sum() for shares in table.values()]),
        )
        for row in reversed(range(rows))
    ]
    picture = figures.svg("solved", draw, x_label="iteration", readings=readings, unit=" % of groups")
    return Panel("Solved by group", f"of {size} completions", picture, caption, (Key("share of groups", "s0"),))


def _solved(rollouts: Artifact, solved_at: float) -> Values:
    """The share of each group's graded completions that were solved."""
    scalars = scan_table(rollouts, Rollouts).filter(ends_episode()).select("group_id", "reward").drop_nulls()
    shares = scalars.group_by("group_id").agg(share=(pl.col("reward") >= solved_at).mean()).collect(engine="streaming")
    return np.asarray(shares["share"].to_numpy(), dtype=float)


def _shares(solved: Values, rows: int) -> Values:
    """The share of groups in each row, scaled so that the largest is 1.

    >>> _shares(np.array([0.0, 0.0, 0.5, 1.0]), 3).tolist()
    [1.0, 0.5, 0.5]
    """
    places = np.where(solved == 1, rows - 1, np.minimum(np.ceil(solved * (rows - 1)), rows - 2 if rows > 2 else 0)).astype(int)
    counts = np.bincount(places, minlength=rows).astype(float)
    return np.asarray(counts / counts.max(), dtype=float)


def _label(row: int, rows: int, size: int) -> str:
    """The completions a row stands for."""
    if rows == size + 1 or row in (0, rows - 1):
        return str(round(row * size / (rows - 1)))
    low, high = ((row - 1) * size // (rows - 1) + 1, row * size // (rows - 1))
    return str(high) if low >= high else f"{low}–{high}"
