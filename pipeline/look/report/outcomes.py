"""What is one figure per iteration: accuracy, rewards, lengths, statuses, drops, logprob difference, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from pipeline.common.text import ABSENT, count, duration, number, percent
from pipeline.look.report import figures
from pipeline.look.report.beside import busiest, not_comparable
from pipeline.look.report.colors import MUTED, RAMP, RULE, SERIES, role_of
from pipeline.look.report.episodes import episode_panels
from pipeline.look.report.figures import Values
from pipeline.look.report.groups import solved_panel
from pipeline.look.report.places import place_panels
from pipeline.look.report.readings import Readout
from pipeline.look.report.rewards import reward_shares
from pipeline.look.report.sections import Grid, Key, Panel, Section, section
from pipeline.look.report.terminal import COLUMNS, iteration_cells
from pipeline.run.state import Iteration, Run
from pipeline.store import Artifact, read_table, scan_table
from pipeline.store.space import readable
from schemas import Evaluation, Metrics, Timing
from schemas.rollouts import STATUSES

STAGES = ("generate", "shape", "train", "evaluate")
TRAINED = ("tokens trained", "trained/s", "shared", "peak memory")
"""Columns of the table of times that say what the training did."""


def accuracy_section(rows: Sequence[dict[str, Any]]) -> Section:
    """pass@1 and greedy accuracy per iteration with intervals, other pass@k, and the table of the terminal.

    Args:
        rows: the iterations of `status`.
    """
    evaluated = [row for row in rows if row["pass_at_k"] or row["greedy_accuracy"] is not None]
    grid = Grid(COLUMNS, [iteration_cells(row) for row in rows]) if rows else None
    if not evaluated:
        return Section("accuracy", "Accuracy", grid=grid, absent="No evaluation has finished yet.")
    lines = {
        "pass@1, sampled": [(row["pass_at_k"] or {}).get("1") for row in evaluated],
        "greedy": [_with_prefix(row, "greedy_accuracy") for row in evaluated],
    }
    others = sorted({int(k) for row in evaluated for k in row["pass_at_k"] or {}} - {1})
    more = {f"pass@{k}": [(row["pass_at_k"] or {}).get(str(k)) for row in evaluated] for k in others}
    x = np.array([row["iteration"] for row in evaluated], dtype=float)
    caption = "Share of held-out prompts solved, with bootstrap intervals over prompts. Iteration 0 is the base model."
    panels = [_accuracy_panel("accuracy-plot", "Held-out accuracy", x, lines, caption)]
    if more:
        panels.append(_accuracy_panel("pass-at-k", "pass@k", x, more, "Share of prompts solved by at least one of k samples."))
    panels += _set_panels(rows)
    about = (
        "Accuracy is that of the iteration's policy on held-out prompts; reward and tokens are those of its training "
        "rollouts; KL that of the training that followed."
    )
    return section("accuracy", "Accuracy", panels, about, grid=grid)


def _set_panels(rows: Sequence[dict[str, Any]]) -> list[Panel | str]:
    """One for each held-out set of `evaluate.sets`."""
    found = []
    for place, name in enumerate(dict.fromkeys(name for row in rows for name in row["sets"])):
        judged = [{"iteration": row["iteration"], **row["sets"][name]} for row in rows if name in row["sets"]]
        lines = {
            "pass@1, sampled": [(row["pass_at_k"] or {}).get("1") for row in judged],
            "greedy": [_with_prefix(row, "greedy_accuracy") for row in judged],
        }
        x = np.array([row["iteration"] for row in judged], dtype=float)
        caption = f"The same of the held-out set {name}, with its own graders and sampling."
        found.append(_accuracy_panel(f"set-{place}", f"Held-out set {name}", x, lines, caption))
    return found


def _with_prefix(row: dict[str, Any], name: str) -> dict[str, float | None] | None:
    value = row[name]
    return None if value is None else {"value": value, "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _accuracy_panel(
    name: str, title: str, x: Values, lines: Mapping[str, Sequence[dict[str, Any] | None]], caption: str
) -> Panel | str:
    there = {label: values for label, values in lines.items() if any(values)}
    if not there:
        return f"{title}: neither pass@1 nor greedy accuracy was evaluated."
    colors = figures.cycle(len(there))

    def draw(axes: Axes) -> None:
        for place, (values, color) in enumerate(zip(there.values(), colors, strict=True)):
            shift = 0.05 * (place - (len(there) - 1) / 2)
            figures.points_with_intervals(axes, x + shift, *_percents(values), color)
        low_now, high_now = axes.get_ylim()
        axes.set_ylim(max(low_now, -2), min(high_now, 102))
        figures.whole_numbers(axes, float(x.min()), float(x.max()))

    keys = tuple(Key(label, role_of(color)) for label, color in zip(there, colors, strict=True))
    readings = [Readout(key.label, key.role, x, *_percents(there[key.label])) for key in keys]
    picture = figures.svg(name, draw, x_label="iteration", readings=readings, unit=" %")
    return Panel(title, "% of prompts", picture, caption, keys)


def _percents(points: Sequence[dict[str, Any] | None]) -> tuple[Values, Values, Values]:
    """Value, low and high of shares, in percent."""
    value, low, high = (100 * _floats([(point or {}).get(key) for point in points]) for key in ("value", "low", "high"))
    return value, low, high


def rollouts_section(run: Run) -> Section:
    """What the training rollouts are like: rewards, lengths, statuses, and what shaping made of them."""
    slug, title = "training-rollouts", "Training rollouts"
    if not any(step.answers and step.answers.rollouts for step in run.iterations):
        return Section(slug, title, absent="No training rollouts are there yet.")
    panels = [
        _reward_panel(run),
        *place_panels(run),
        *episode_panels(run),
        solved_panel(run),
        _length_panel(run),
        _status_panel(run),
        _drop_panel(run),
    ]
    return section(slug, title, panels)


def _reward_panel(run: Run) -> Panel | str:
    shares = reward_shares({step.iteration: step.answers.rollouts for step in run.iterations if step.answers})
    if shares is None:
        return "No rollout has a reward, so there is no reward distribution."
    colors = _ramp(len(shares.labels))
    keys = tuple(Key(label, role_of(color)) for label, color in zip(shares.labels, colors, strict=True))
    picture = figures.bars("rewards", shares.iterations, list(100 * shares.shares), colors, shares.labels, unit=" %")
    caption = "Rewards of the training rollouts, lowest at the foot. Rollouts without a reward are left out here."
    return Panel("Reward distribution", "% of graded rollouts", picture, caption, keys)


def _ramp(size: int) -> list[str]:
    """Colors from low to high that use the whole ramp."""
    if size == 1:
        return [RAMP[-1]]
    return [RAMP[round(position * (len(RAMP) - 1) / (size - 1))] for position in range(size)]


def _length_panel(run: Run) -> Panel | str:
    """Mean of the training rollouts, quantiles of the sampled held-out answers."""
    rows = [_lengths(step) for step in run.iterations]
    frame = pl.DataFrame([row for row in rows if len(row) > 1], schema=dict.fromkeys(_LENGTHS, pl.Float64))
    if frame.is_empty():
        return "No response lengths are there yet."
    limit = run.config.generate.max_tokens

    def draw(axes: Axes) -> None:
        figures.points_with_intervals(axes, x, middle, low, high, SERIES[0])
        figures.line(axes, x, train, SERIES[1])
        top = float(np.nanmax(frame.select(pl.max_horizontal(pl.exclude("iteration"))).to_numpy().astype(float), initial=1))
        if limit <= 1.5 * top:
            axes.axhline(limit, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_ylim(0, None)
        figures.whole_numbers(axes, float(x.min()), float(x.max()))

    keys = (
        Key("held-out samples: median, bars 10–90 %", role_of(SERIES[0])),
        Key("training rollouts: mean", role_of(SERIES[1])),
    )
    caption = f"Completion tokens. The limit is generate.max_tokens = {limit} (dashed, if it lies in view)."
    x, train, low, middle, high = (frame[name].cast(pl.Float64).to_numpy() for name in _LENGTHS)
    readings = [
        Readout("held-out: median [10 %, 90 %]", keys[0].role, x, middle, low, high),
        Readout("training: mean", keys[1].role, x, train),
    ]
    return Panel("Response length", "tokens", figures.svg("lengths", draw, x_label="iteration", readings=readings), caption, keys)


_LENGTHS = ("iteration", "train", "q10", "q50", "q90")


def _lengths(step: Iteration) -> dict[str, float]:
    found: dict[str, float] = {"iteration": step.iteration}
    rollouts = step.answers.rollouts.summary if step.answers and step.answers.rollouts else {}
    if rollouts.get("tokens") is not None and rollouts.get("completions"):
        found["train"] = rollouts["tokens"] / rollouts["completions"]
    if step.evaluation is not None and step.evaluation.tables("evaluation"):
        length = pl.col("completion_tokens")
        sampled = scan_table(step.evaluation, Evaluation).filter(pl.col("mode") == "sampled")
        row = sampled.select(q10=length.quantile(0.1), q50=length.median(), q90=length.quantile(0.9)).collect().row(0, named=True)
        found |= {name: value for name, value in row.items() if value is not None}
    return found


def logprob_panel(run: Run) -> Panel | str:
    """How far the trainer's logprobs lie from the engine's before the first step."""
    rows = []
    for step in run.iterations:
        mean, greatest = _logprob_difference(step.checkpoint)
        if mean is not None or greatest is not None:
            rows.append((float(step.iteration), mean, greatest))
    if not rows:
        return "The logprob difference between engine and trainer was not measured."
    x, mean_values, max_values = (_floats([row[place] for row in rows]) for place in range(3))
    limit = run.config.train.max_logprob_difference

    def draw(axes: Axes) -> None:
        figures.line(axes, x, mean_values, SERIES[0])
        figures.line(axes, x, max_values, SERIES[1])
        axes.axhline(limit, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        figures.log_scale(axes, np.concatenate([mean_values, max_values, [limit]]))
        figures.whole_numbers(axes, float(x.min()), float(x.max()))

    keys = (Key("mean", role_of(SERIES[0])), Key("greatest", role_of(SERIES[1])))
    caption = (
        "|trainer - stored| logprob per token before the first step. The dashed line is "
        f"train.max_logprob_difference = {limit:g}: a mean above it refuses to train."
    )
    readings = [Readout(key.label, key.role, x, values) for key, values in zip(keys, (mean_values, max_values), strict=True)]
    picture = figures.svg("logprobs", draw, x_label="iteration", readings=readings)
    return Panel("Engine and trainer", "nats", picture, caption, keys)


def _logprob_difference(checkpoint: Artifact | None) -> tuple[float | None, float | None]:
    """Mean and maximum from the steps that measured them, else from the summary."""
    names = ("logprob_difference_mean", "logprob_difference_max")
    if checkpoint is None:
        return None, None
    if checkpoint.tables("metrics"):
        frame = read_table(checkpoint, Metrics, names)
        mean, greatest = frame[names[0]].mean(), frame[names[1]].max()
        if mean is not None or greatest is not None:
            return _number(mean), _number(greatest)
    return _number(checkpoint.summary.get(names[0])), _number(checkpoint.summary.get(names[1]))


def _status_panel(run: Run) -> Panel | str:
    counts = {
        step.iteration: step.answers.rollouts.summary.get("statuses")
        for step in run.iterations
        if step.answers and step.answers.rollouts
    }
    panel = _shares("statuses", "Statuses", counts, STATUSES, "How each training rollout ended.")
    return panel or "The rollouts' manifests count no statuses."


def _drop_panel(run: Run) -> Panel | str:
    counts = {
        step.iteration: {"kept": step.shaped.summary["kept"], **(step.shaped.summary.get("dropped") or {})}
        for step in run.iterations
        if step.shaped and step.shaped.summary.get("kept") is not None
    }
    panel = _shares("drops", "Kept and dropped", counts, ("kept",), "What shaping left out of training, and why.")
    return panel or "No rollouts have been shaped yet, so none are dropped."


def _shares(
    name: str, title: str, counts: Mapping[int, dict[str, int] | None], first: Sequence[str], caption: str
) -> Panel | None:
    """Stacked shares per iteration; names in `first` come first, the others in order of the alphabet."""
    there = {iteration: row for iteration, row in counts.items() if row and sum(row.values())}
    if not there:
        return None
    names = {label for row in there.values() for label, value in row.items() if value}
    labels = [label for label in first if label in names] + sorted(names - set(first))
    colors = [RULE if label in ("ok", "kept") else color for label, color in zip(labels, figures.cycle(len(labels)), strict=True)]
    x = np.array(list(there), dtype=float)
    parts = [np.array([100 * row.get(label, 0) / sum(row.values()) for row in there.values()]) for label in labels]
    picture = figures.bars(name, x, parts, colors, labels, unit=" %")
    keys = tuple(Key(label, role_of(color)) for label, color in zip(labels, colors, strict=True))
    return Panel(title, "% of rollouts", picture, caption, keys, quiet=f"all {labels[0]}" if colors == [RULE] else "")


def time_section(run: Run, rows: Sequence[dict[str, Any]]) -> Section:
    """Seconds per stage and tokens per iteration."""
    timed = [row for row in rows if any(value is not None for value in row["seconds"].values())]
    if not timed:
        return Section("time", "Time and tokens", absent="No stage has finished yet.")
    longest = max(sum(value or 0 for value in row["seconds"].values()) for row in timed)
    unit, divisor = ("s", 1) if longest < 300 else ("min", 60) if longest < 18000 else ("h", 3600)
    x = np.array([row["iteration"] for row in timed], dtype=float)
    parts = [np.array([(row["seconds"][stage] or 0) / divisor for row in timed]) for stage in STAGES]
    colors = figures.cycle(len(STAGES))
    picture = figures.bars("time-plot", x, parts, colors, STAGES, unit=f" {unit}")
    keys = tuple(Key(stage, role_of(color)) for stage, color in zip(STAGES, colors, strict=True))
    caption = (
        "Wall time of the processes that finished the work; generate is training rollouts plus held-out answers. shared: of the "
        "positions that completions would take one by one, those that a common beginning spared the training."
    )
    columns = ("iteration", *STAGES, "training rollouts", "tokens generated", "held-out tokens", *TRAINED)
    grid = Grid(columns, [_time_cells(step, row) for step, row in zip(run.iterations, rows, strict=True)])
    panel = Panel("Time per stage", unit, picture, caption, keys)
    beside = {f"iteration {step.iteration}": busiest(_timed(step)) for step in run.iterations}
    disturbed = not_comparable({which: cores for which, cores in beside.items() if cores is not None})
    return Section("time", "Time and tokens", panels=(panel,), grid=grid, notes=(disturbed,) if disturbed else ())


def _timed(step: Iteration) -> list[Artifact]:
    """What an iteration's time went into."""
    answers = (step.answers.rollouts, step.answers.sampled, step.answers.greedy) if step.answers else ()
    return [part for part in (*answers, step.checkpoint) if part]


def _time_cells(step: Iteration, row: dict[str, Any]) -> list[str]:
    answers = step.answers
    rollouts = answers.rollouts.summary if answers and answers.rollouts else {}
    heldout = [part.summary.get("tokens") for part in (answers.sampled, answers.greedy) if part] if answers else []
    known = [tokens for tokens in heldout if tokens is not None]
    trained = step.checkpoint.summary.get("tokens") if step.checkpoint else None
    return [
        str(step.iteration),
        *(duration(row["seconds"][stage]) for stage in STAGES),
        count(rollouts.get("completions")),
        count(rollouts.get("tokens")),
        count(sum(known) if known else None),
        count(trained),
        number(_speed(step.checkpoint)),
        percent(row["training"]["reuse"]),
        ABSENT if (peak := row["training"]["memory_peak"]) is None else readable(peak),
    ]


def _speed(checkpoint: Artifact | None) -> float | None:
    """Completion tokens trained per second, over all timed steps."""
    if checkpoint is None or not checkpoint.tables("timing"):
        return None
    seconds, speed = pl.col("seconds"), pl.col("tokens_per_second")
    return _number(read_table(checkpoint, Timing).select((seconds * speed).sum() / seconds.sum()).item())


def _floats(values: Sequence[float | None]) -> Values:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
