"""Curves of many algorithms: one plot per figure with all of them, and one card per algorithm for what cannot share an axis.

A line has its algorithm's color and dashes and is the mean over seeds; the band spans their least to greatest value. Each
line is marked with its algorithm's number, so that the page can put the others in the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.look.report import figures
from pipeline.look.report.colors import MUTED, SERIES, role_of
from pipeline.look.report.comparison_data import Compared, by_epoch, over_seeds
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Panel, Section, section
from schemas import Comparison, Metrics

DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.6), (1, 1.4))
"""Lengths of strokes and gaps, in line widths, for each round through the colors."""
X_LABEL = "passes over the snapshot"
AT = "after passes:"
QUANTILES = {"ratio_q01": "1 %", "ratio_q10": "10 %", "ratio_q50": "median", "ratio_q90": "90 %", "ratio_q99": "99 %"}
CARD_WIDTH, CARD_HEIGHT = 300, 150
Read = Callable[[Compared, str, str], pl.DataFrame]


@dataclass(frozen=True)
class LineStyle:
    """How an algorithm is drawn."""

    number: int
    color: str
    dashes: tuple[float, ...]

    @property
    def role(self) -> str:
        return role_of(self.color)

    @property
    def gid(self) -> str:
        return f"series-{self.number}"


def look_of(number: int) -> LineStyle:
    """The look of the n-th algorithm: color, and dashes once the colors are used up."""
    return LineStyle(number, SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)])


@dataclass(frozen=True)
class _TrialPlot:
    title: str
    unit: str
    column: str
    bounds: tuple[float, float] | None = None
    log: bool = False
    caption: str = ""
    factor: float = 1.0


_STEPS = (
    _TrialPlot("Entropy", "nats", "entropy"),
    _TrialPlot("KL to the behavior policy", "nats per token", "kl_behavior", log=True),
    _TrialPlot("Effective sample size", "share of completions", "ess", (0.0, 1.0)),
    _TrialPlot("Clip fraction, A > 0", "share of tokens", "clip_fraction_positive"),
    _TrialPlot("Clip fraction, A < 0", "share of tokens", "clip_fraction_negative"),
    _TrialPlot("Gradient norm", "before clipping", "grad_norm", log=True),
)
_EPOCHS = (
    _TrialPlot("pass@1 after each epoch", "% of prompts", "pass_at_1", factor=100.0),
    _TrialPlot("Greedy accuracy after each epoch", "% of prompts", "greedy", factor=100.0),
    _TrialPlot(
        "Response length after each epoch",
        "tokens",
        "completion_tokens_mean",
        caption="Mean length of the sampled held-out answers.",
    ),
)


def epochs_section(compared: Compared) -> Section | None:
    """Held-out figures after every epoch; None if only the last was judged."""
    if not compared.artifact.recipe["curve"]:
        return None
    about = "Held-out figures of the policy before training (0) and after each pass over the snapshot."
    panels = [_panel(compared, plot, by_epoch, Comparison.columns()[plot.column].description or "") for plot in _EPOCHS]
    return section("epochs", "Epoch by epoch", panels, about)


def training_section(compared: Compared) -> Section:
    """Figures of every optimizer step that mean the same for all algorithms."""
    slug, title = "training", "Training"
    if compared.steps.is_empty():
        return Section(slug, title, absent="No training has finished, so there are no training curves.")
    seeds = "the mean over seeds; the band spans their least to greatest value" if len(compared.seeds) > 1 else "one training"
    about = f"Figures over each whole optimizer step. A line is {seeds}."
    panels = [_panel(compared, plot, over_seeds, Metrics.columns()[plot.column].description or "") for plot in _STEPS]
    return section(slug, title, panels, about)


def _panel(compared: Compared, plot: _TrialPlot, read: Read, description: str) -> Panel | str:
    lines = {label: read(compared, label, plot.column) for label in compared.labels}
    there = {label: line for label, line in lines.items() if not line.is_empty()}
    if not there:
        return f"{plot.title}: not defined for these algorithms or data."
    looks = {label: look_of(number) for number, label in enumerate(compared.labels)}

    def draw(axes: Axes) -> None:
        for label, line in there.items():
            _draw_line(axes, line, looks[label], plot.factor)
        _passes(axes)
        _scale(axes, plot, list(there.values()))

    readings = [_readout(label, there[label], looks[label], plot.factor) for label in compared.ranked if label in there]
    unit = " %" if plot.unit.startswith("%") else ""
    trained = set(compared.steps["label"].unique())
    absent = [label for label in compared.labels if label in trained and label not in there]
    return Panel(
        title=plot.title,
        unit=plot.unit,
        picture=figures.svg(f"all-{plot.column.replace('_', '-')}", draw, x_label=X_LABEL, at=AT, readings=readings, unit=unit),
        caption=plot.caption or description,
        notes=(f"Not defined for {', '.join(absent)}.",) if absent else (),
    )


def _readout(name: str, line: pl.DataFrame, look: LineStyle, factor: float = 1.0, *, pick: bool = True) -> Readout:
    x, mean, low, high = (_floats(line[end]) for end in ("x", "mean", "low", "high"))
    several = bool(np.any(high > low))
    return Readout(
        label=name,
        role=look.role,
        x=x,
        y=factor * mean,
        low=factor * low if several else None,
        high=factor * high if several else None,
        pick=f"pick-{look.number}" if pick else None,
    )


def _draw_line(axes: Axes, line: pl.DataFrame, look: LineStyle, factor: float) -> None:
    x, mean, low, high = (_floats(line[name]) for name in ("x", "mean", "low", "high"))
    style: dict[str, Any] = {"color": look.color, "linewidth": 1.5}
    if look.dashes:
        style["dashes"] = look.dashes
    if np.any(high > low):
        axes.fill_between(x, factor * low, factor * high, color=look.color, alpha=0.14, linewidth=0, gid=look.gid)
    axes.plot(x, factor * mean, gid=look.gid, **style)
    if len(x) == 1:
        axes.plot(x, factor * mean, "o", markersize=4, color=look.color, gid=look.gid)


def _passes(axes: Axes) -> None:
    """A tick and a faint line at each whole pass."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.grid(axis="x", visible=True, linestyle=(0, (1, 3)))


def _scale(axes: Axes, plot: _TrialPlot, lines: list[pl.DataFrame]) -> None:
    if plot.bounds is not None:
        low, high = plot.bounds
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    elif plot.log:
        ends = np.array([line["mean"][-1] for line in lines])
        if ends.min() > 0 and ends.max() >= 10 * ends.min():
            figures.log_scale(axes, ends)
            axes.set_ylim(bottom=ends.min() / 3)  # the first step of a training lies at a distance of almost 0


def cards(compared: Compared) -> list[Panel]:
    """For each algorithm its ratio quantiles (axes shared) and its loss (an axis of its own)."""
    trained = [label for label in compared.ranked if compared.steps.filter(pl.col("label") == label).height]
    ratios = {label: {name: over_seeds(compared, label, name) for name in QUANTILES} for label in trained}
    drawn = [_floats(line[which]) for label in trained for line in ratios[label].values() for which in ("low", "high")]
    everything = np.concatenate(drawn) if drawn else np.array([])
    return [_card(compared, label, ratios[label], everything) for label in trained]


def _card(compared: Compared, label: str, ratios: dict[str, pl.DataFrame], everything: Values) -> Panel:
    look = look_of(compared.labels.index(label))

    def draw_ratios(axes: Axes) -> None:
        x = _floats(ratios["ratio_q50"]["x"])
        means = {name: _floats(line["mean"]) for name, line in ratios.items()}
        axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        figures.band(axes, x, means["ratio_q01"], means["ratio_q99"], look.color, 0.18)
        figures.band(axes, x, means["ratio_q10"], means["ratio_q90"], look.color, 0.32)
        axes.plot(x, means["ratio_q50"], color=look.color)
        figures.span(axes, everything)
        figures.log_scale(axes, everything)
        _passes(axes)

    loss = over_seeds(compared, label, "loss")

    def draw_loss(axes: Axes) -> None:
        _draw_line(axes, loss, look, 1.0)
        _passes(axes)

    pictures = []
    if not ratios["ratio_q50"].is_empty():
        told = [_readout(QUANTILES[name], line, look, pick=False) for name, line in ratios.items()]
        pictures.append(("ratio", draw_ratios, "", told))
    pictures.append(("loss", draw_loss, X_LABEL, [_readout("loss", loss, look, pick=False)]))
    drawn = [
        figures.svg(
            f"card-{look.number}-{name}", draw, x_label=x_label, at=AT, readings=told, width=CARD_WIDTH, height=CARD_HEIGHT
        )
        for name, draw, x_label, told in pictures
    ]
    notes = () if len(pictures) > 1 else ("No ratio: the rollouts' logprobs cannot be used.",)
    return Panel(title=label, unit="", picture=drawn[0] + (drawn[1] if drawn[1:] else ""), notes=notes)


def _floats(values: pl.Series) -> Values:
    return values.cast(pl.Float64).to_numpy()
