"""What a tracker is given: every optimizer step and every evaluation of a run, read from its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from pipeline.run.state import Run
from pipeline.run.status import status
from pipeline.store import Artifact, read_table
from schemas import Metrics, Timing

EVALUATED = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "greedy_accuracy", "reward_mean", "tokens")
ACCURACY = EVALUATED[:4]
"""Of every held-out set."""
NOT_FIGURES = ("step", "epoch")


@dataclass(frozen=True)
class Point:
    """Figures at one place of a run."""

    step: int
    """Optimizer steps before it, counted over the whole run: the x axis of every figure."""
    time: float
    """Seconds since 1970: when the training, or the evaluation, of that iteration was finished."""
    figures: dict[str, float]
    """By name: train/loss, train/kl_behavior, eval/pass_at_1 and so on. What is undefined or not finite is left out."""

    @property
    def kind(self) -> str:
        """What it tells of: train, eval or generate; each has one point for a step and iteration.

        >>> Point(3, 0.0, {"iteration": 1.0, "train/loss": 0.5}).kind
        'train'
        """
        return next((name.partition("/")[0] for name in self.figures if "/" in name), "")

    @property
    def key(self) -> tuple[str, int, int]:
        """Kind, iteration and step."""
        return self.kind, round(self.figures.get("iteration", 0)), self.step


def points(run: Run, first: int = 0) -> Iterator[Point]:
    """Every point of a run from an iteration on, in the order of steps."""
    step = sum(steps_of(iteration.checkpoint) for iteration in run.iterations[:first] if iteration.checkpoint)
    rows = status(run)["iterations"]
    for iteration, row in zip(run.iterations[first:], rows[first:], strict=True):
        if iteration.evaluation:
            figures = {f"eval/{name}": row[name] for name in EVALUATED}
            figures |= {f"eval/{name}/{figure}": one[figure] for name, one in row["sets"].items() for figure in ACCURACY}
            yield Point(step, _finished(iteration.evaluation), {"iteration": iteration.iteration, **finite(figures)})
        if iteration.checkpoint is None:
            continue
        when = _finished(iteration.checkpoint)
        scheduled = {f"scheduled/{name}": value for name, value in row["scheduled"].items()}
        metrics, timing = read_table(iteration.checkpoint, Metrics), read_table(iteration.checkpoint, Timing)
        for figures in metrics.join(timing, on="step", how="left").sort("step").iter_rows(named=True):
            named = {f"train/{name}": value for name, value in figures.items() if name not in NOT_FIGURES}
            yield Point(step, when, {"iteration": iteration.iteration, **finite(named), **finite(scheduled)})
            step += 1


def steps_of(checkpoint: Artifact) -> int:
    """Optimizer steps that a checkpoint was trained for."""
    table = f"{Metrics.__name__.lower()}/"
    return sum(file.rows or 0 for file in checkpoint.files if file.table and file.table.startswith(table))


def finite(figures: dict[str, float | int | None]) -> dict[str, float]:
    """Figures that a tracker can draw."""
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


def _finished(artifact: Artifact) -> float:
    return datetime.fromisoformat(artifact.manifest.provenance.created).timestamp()
