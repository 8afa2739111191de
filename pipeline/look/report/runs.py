"""Several runs on one page: how they end, their curves over iterations, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pipeline.common.differences import differences
from pipeline.common.errors import UserError
from pipeline.common.text import count, duration, interval, number, percent
from pipeline.look.report import figures
from pipeline.look.report.comparison_curves import DASHES, look_of
from pipeline.look.report.frame import page_environment, script
from pipeline.look.report.previous import OWN
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Grid, Key, Panel, Section, section
from pipeline.run.state import Run
from pipeline.run.status import status
from pipeline.store.files import write_text

CURVES = {
    "pass_at_1": ("pass@1", "% of held-out prompts", 100.0),
    "greedy_accuracy": ("Greedy accuracy", "% of held-out prompts", 100.0),
    "reward_mean": ("Mean reward", "of the training rollouts", 1.0),
    "kl_behavior": ("KL to the behavior policy", "nats per token", 1.0),
    "entropy": ("Entropy", "nats per token", 1.0),
}
"""Figure of an iteration: title, unit, factor."""
DASHED = dict(zip(DASHES, ("", " (dashed)", " (dotted)"), strict=True))
"""What the legend says of a line once the colors are used up."""


def write_runs(runs: Mapping[str, Run], path: str | Path) -> Path:
    """Write the page; an earlier one at that place is replaced whole.

    Args:
        runs: by label, at least two.
    """
    path = Path(path)
    write_text(path, render(runs))
    return path


def labels_of(directories: Sequence[Path], runs: Sequence[Run]) -> list[str]:
    """Names of runs; where two are alike, their directories.

    Raises:
        UserError: a directory is named twice.
    """
    places = [str(directory) for directory in directories]
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError("a run is named twice; name different runs")
    names = [run.config.name for run in runs]
    labels = [place if names.count(name) > 1 else name for name, place in zip(names, places, strict=True)]
    return labels if len(set(labels)) == len(labels) else places


def render(runs: Mapping[str, Run]) -> str:
    """The page's HTML."""
    rows = {label: status(run) for label, run in runs.items()}
    panels = [_curve(rows, figure) for figure in CURVES]
    sections = [
        Section("ends", "How they end", grid=_ends(rows), panels=()),
        section("curves", "Over iterations", panels, "One line per run. Iteration 0 is the base model."),
    ]
    changed = Grid(("setting", *runs), settings_that_differ(runs))
    template = page_environment().get_template("runs.html.j2")
    return template.render(labels=list(runs), sections=sections, changed=changed, scripts=[script("readings.js")])


def settings_that_differ(runs: Mapping[str, Run]) -> list[list[str]]:
    """One row per setting that is not the same in all runs: its key and its value in each."""
    trees = [run.config.model_dump(mode="json", exclude=OWN) for run in runs.values()]
    keys = {difference.key: None for tree in trees[1:] for difference in differences(trees[0], tree)}
    return [[key, *(str(_value(tree, key)) for tree in trees)] for key in keys]


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return "–"
    return tree


def _ends(rows: Mapping[str, dict[str, Any]]) -> Grid:
    columns = ("run", "iterations", "pass@1 at the end", "best pass@1", "greedy", "reward", "tokens", "wall time", "state")
    return Grid(columns, [[label, *_end(now)] for label, now in rows.items()])


def _end(now: dict[str, Any]) -> list[str]:
    judged = [row for row in now["iterations"] if row["pass_at_1"] is not None]
    last: dict[str, Any] = (
        judged[-1] if judged else dict.fromkeys(("pass_at_1", "pass_at_1_low", "pass_at_1_high", "greedy_accuracy"))
    )
    rewards = [row["reward_mean"] for row in now["iterations"] if row["reward_mean"] is not None]
    seconds = [value for row in now["iterations"] for value in row["seconds"].values() if value is not None]
    state = f"stopped: {now['stopped']['why']}" if now["stopped"] else now["missing"] and f"next: {now['missing']}"
    best = now["best"]
    return [
        str(max((row["iteration"] for row in judged), default=0)),
        interval(last["pass_at_1"], last["pass_at_1_low"], last["pass_at_1_high"]),
        f"{percent(best['pass_at_1'])} (iteration {best['iteration']})" if best else "–",
        percent(last["greedy_accuracy"]),
        number(rewards[-1] if rewards else None),
        count(sum(row["tokens"] or 0 for row in now["iterations"])),
        duration(sum(seconds)) if seconds else "–",
        state or "complete",
    ]


def _curve(rows: Mapping[str, dict[str, Any]], figure: str) -> Panel | str:
    title, unit, factor = CURVES[figure]
    lines = {label: [row for row in now["iterations"] if row[figure] is not None] for label, now in rows.items()}
    if not any(lines.values()):
        return f"{title}: no run has it."
    looks = {label: look_of(place) for place, label in enumerate(rows)}
    step = min(0.06, 0.8 / len(rows))

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(lines.items()):
            x = np.array([point["iteration"] for point in points], dtype=float)
            y = factor * np.array([point[figure] for point in points], dtype=float)
            if points and points[0].get(f"{figure}_low") is not None:
                low, high = (factor * np.array([point[f"{figure}_{end}"] for point in points], float) for end in ("low", "high"))
                shift = step * (place - (len(lines) - 1) / 2)
                figures.points_with_intervals(axes, x + shift, y, low, high, looks[label].color, looks[label].dashes)
            else:
                figures.line(axes, x, y, looks[label].color, looks[label].dashes)
        every = [point["iteration"] for points in lines.values() for point in points]
        figures.whole_numbers(axes, float(min(every)), float(max(every)))

    keys = tuple(Key(label + DASHED[look.dashes], look.role) for label, look in looks.items() if lines[label])
    readings = [_reading(label, looks[label].role, points, figure, factor) for label, points in lines.items() if points]
    picture = figures.svg(
        figure.replace("_", "-"), draw, x_label="iteration", readings=readings, unit=" %" if unit.startswith("%") else ""
    )
    return Panel(title, unit, picture, keys=keys)


def _reading(label: str, role: str, points: Sequence[dict[str, Any]], figure: str, factor: float) -> Readout:
    x, y, low, high = (
        np.array([np.nan if (value := point.get(name)) is None else value for point in points], dtype=float)
        for name in ("iteration", figure, f"{figure}_low", f"{figure}_high")
    )
    return Readout(label, role, x, factor * y, factor * low, factor * high)
