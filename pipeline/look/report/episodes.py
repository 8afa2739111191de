"""Episodes in the report: turns, calls and failed calls, and who wrote the tokens, from the summaries of the rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pipeline.look.report import figures
from pipeline.look.report.colors import SERIES, role_of
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Key, Panel
from pipeline.run.state import Run


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
    ]


def _panel(
    name: str, title: str, unit: str, found: Mapping[int, Mapping[str, Any]], wanted: Mapping[str, str], caption: str
) -> Panel:
    x = np.array(list(found), dtype=float)
    lines: dict[str, Values] = {
        label: np.array([summary["episodes"][figure] / summary["completions"] for summary in found.values()])
        for label, figure in wanted.items()
    }
    colors = SERIES[: len(lines)]

    def draw(axes: Axes) -> None:
        for values, color in zip(lines.values(), colors, strict=True):
            figures.line(axes, x, values, color)
        figures.whole_numbers(axes, float(x.min()), float(x.max()))

    keys = tuple(Key(label, role_of(color)) for label, color in zip(lines, colors, strict=True))
    readings = [Readout(key.label, key.role, x, lines[key.label]) for key in keys]
    picture = figures.svg(name, draw, x_label="iteration", readings=readings)
    return Panel(title, unit, picture, f"Means of the training rollouts. {caption}", keys)
