"""Training curves: every optimizer step of a run, in order, with the borders of its epochs and iterations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.common.text import number
from pipeline.look.report import figures
from pipeline.look.report.colors import BAD, MUTED, SERIES, role_of
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Key, Panel, Section, section
from pipeline.run.state import Run
from pipeline.store import read_table
from schemas import Metrics

POINTS = 600
"""Longer curves are drawn as means over as many steps as it takes."""
EPOCH_LINES = 60
"""Beyond this many epochs only iterations are marked."""
QUANTILES = ("ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99")


@dataclass(frozen=True)
class Curves:
    """Rows of Metrics of all iterations with `x`, the step counted over the run, and `iteration`."""

    frame: pl.DataFrame

    @property
    def last(self) -> float:
        return float(len(self.frame) - 1)

    def starts(self, *by: str) -> list[tuple[float, int]]:
        """Where each iteration (or epoch of one) begins, with its iteration."""
        rows = self.frame.group_by("iteration", *by, maintain_order=True).agg(pl.col("x").min())
        return list(zip(rows["x"].to_list(), rows["iteration"].to_list(), strict=True))

    def has(self, column: str) -> bool:
        return self.frame[column].null_count() < len(self.frame)

    def not_finite(self, column: str) -> pl.DataFrame:
        """Steps at which a column is NaN or infinite (null means not defined, and does not count)."""
        return self.frame.filter(pl.col(column).is_not_null() & ~pl.col(column).is_finite())

    @property
    def stride(self) -> int:
        """Steps behind each drawn point."""
        return -(-len(self.frame) // POINTS)

    def drawn(self, column: str) -> tuple[Values, Values, Values, Values]:
        """x, mean, least and greatest of the finite values behind each drawn point; NaN where there is none.

        A NaN also stands between iterations: each starts from a behavior policy of its own.
        """
        value = pl.when(pl.col(column).cast(pl.Float64).is_finite()).then(pl.col(column).cast(pl.Float64))
        rows = (
            self.frame.select("iteration", "x", bucket=pl.col("x") // self.stride, value=value)
            .group_by("iteration", "bucket", maintain_order=True)
            .agg(pl.col("x").mean(), mean=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max())
        )
        borders = np.flatnonzero(np.diff(rows["iteration"].to_numpy())) + 1
        x, mean, low, high = (
            np.insert(rows[name].cast(pl.Float64).to_numpy(), borders, np.nan) for name in ("x", "mean", "low", "high")
        )
        return x, mean, low, high


def read_curves(run: Run) -> Curves | None:
    """Metrics of every finished training; None if there is none."""
    frames = [
        read_table(step.checkpoint, Metrics).sort("step").with_columns(iteration=pl.lit(step.iteration, dtype=pl.Int32))
        for step in run.iterations
        if step.checkpoint is not None and step.checkpoint.tables("metrics")
    ]
    frame = pl.concat(frames) if frames else pl.DataFrame()
    return Curves(frame.with_columns(x=pl.int_range(pl.len(), dtype=pl.Int64))) if len(frame) else None


@dataclass(frozen=True)
class _RunPlot:
    title: str
    unit: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    floor: float | None = None
    ceiling: float | None = None
    log: bool = False
    caption: str = ""


_PLOTS = (
    _RunPlot("Loss", "", ("loss",)),
    _RunPlot("Gradient norm", "before clipping", ("grad_norm",), log=True),
    _RunPlot("Entropy", "nats", ("entropy",)),
    _RunPlot("KL to the behavior policy", "nats per token", ("kl_behavior",)),
    _RunPlot(
        "Importance ratio",
        "quantiles over tokens",
        QUANTILES,
        labels=("1 %", "10 %", "median", "90 %", "99 %"),
        caption="Token ratio pi/mu, before any clipping.",
    ),
    _RunPlot(
        "Clip fraction",
        "share of tokens",
        ("clip_fraction_positive", "clip_fraction_negative"),
        labels=("A > 0", "A < 0"),
        floor=0.0,
        caption="Tokens that the trust region stopped, of all tokens whose advantage has that sign.",
    ),
    _RunPlot("Effective sample size", "share of completions", ("ess",), floor=0.0, ceiling=1.0),
)
_AGE = _RunPlot(
    "Age of the completions",
    "iterations",
    ("age_mean", "age_max"),
    labels=("mean", "greatest"),
    caption="How many iterations older the policy that drew them is than the one training started from.",
)


def training_section(curves: Curves | None, *more: Panel | str) -> Section:
    """Loss, gradient norm, entropy, KL, ratios, clipping and effective sample size, step by step, and `more` after them."""
    slug, title = "training", "Training"
    if curves is None:
        return Section(slug, title, absent="No training has finished yet, so there are no training curves.")
    panels: list[Panel] = []
    undefined = []
    for plot in (*_PLOTS, _AGE) if curves.frame["age_max"].max() else _PLOTS:
        if any(curves.has(column) for column in plot.columns):
            panels.append(_panel(curves, plot))
        else:
            undefined.append(plot.title.lower())
    notes = []
    if undefined:
        notes.append(f"Not defined for this algorithm or data: {', '.join(undefined)}.")
    if curves.stride > 1:
        notes.append(f"Each point is the mean of {curves.stride} steps; the shade spans their least to greatest value.")
    about = (
        "One point per optimizer step, over all iterations. A solid vertical line starts an iteration (its number above it), "
        "a dotted one an epoch. Figures are over the whole step."
    )
    return section(slug, title, [*panels, *more], about, notes=notes)


def _panel(curves: Curves, plot: _RunPlot) -> Panel:
    description = Metrics.columns()[plot.columns[0]].description or ""
    draw: figures.Draw
    names = plot.labels or (plot.title,)
    if plot.columns == QUANTILES:
        draw, roles = partial(_draw_ratios, curves=curves), [role_of(SERIES[0])] * len(names)
        keys = [Key("median; shades: 10–90 % and 1–99 %", roles[0])]
    else:
        draw, roles = (
            partial(_draw_lines, curves=curves, plot=plot),
            [role_of(color) for color in figures.cycle(len(names))],
        )
        keys = [Key(label, role) for label, role in zip(plot.labels, roles, strict=False)]
    readings = [_reading(curves, *line) for line in zip(plot.columns, names, roles, strict=True)]
    return Panel(
        title=plot.title,
        unit=plot.unit,
        picture=figures.svg(f"curve-{plot.columns[0].replace('_', '-')}", draw, x_label="optimizer step", readings=readings),
        caption=plot.caption or description,
        keys=tuple(keys),
        notes=tuple(note for column in plot.columns if (note := _gap_note(curves, column))),
        quiet=_quiet(curves, plot),
    )


def _reading(curves: Curves, column: str, label: str, role: str) -> Readout:
    x, mean, low, high = curves.drawn(column)
    return Readout(label, role, x, mean, *((low, high) if curves.stride > 1 else ()))


def _quiet(curves: Curves, plot: _RunPlot) -> str:
    """The one value that all the plot's figures have at all steps; empty where they differ, or some are not finite."""
    values = curves.frame.select(
        pl.concat_list(pl.col(plot.columns).cast(pl.Float64)).explode().drop_nulls().unique()
    ).to_series()
    return f"{number(values[0])} throughout" if len(values) == 1 and values.is_finite().all() and len(curves.frame) > 1 else ""


def _draw_lines(axes: Axes, curves: Curves, plot: _RunPlot) -> None:
    for column, color in zip(plot.columns, figures.cycle(len(plot.columns)), strict=True):
        x, mean, low, high = curves.drawn(column)
        if curves.stride > 1:
            figures.band(axes, x, low, high, color, 0.25)
        figures.line(axes, x, mean, color)
    if plot.log:
        figures.log_scale(axes, curves.drawn(plot.columns[0])[1])
    elif plot.floor is not None or plot.ceiling is not None:
        low_now, high_now = axes.get_ylim()
        floor = low_now if plot.floor is None else plot.floor
        ceiling = high_now if plot.ceiling is None else plot.ceiling
        margin = 0.03 * (ceiling - floor)
        axes.set_ylim(floor - margin, ceiling + margin)
    _draw_borders(axes, curves)
    for column in plot.columns:
        _draw_gaps(axes, curves, column)


def _draw_ratios(axes: Axes, curves: Curves) -> None:
    drawn = {column: curves.drawn(column) for column in QUANTILES}
    x = drawn["ratio_q50"][0]
    means = {column: values[1] for column, values in drawn.items()}
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    figures.band(axes, x, means["ratio_q01"], means["ratio_q99"], SERIES[0], 0.18)
    figures.band(axes, x, means["ratio_q10"], means["ratio_q90"], SERIES[0], 0.32)
    figures.line(axes, x, means["ratio_q50"], SERIES[0])
    figures.log_scale(axes, np.concatenate(list(means.values())))
    _draw_borders(axes, curves)


def _draw_borders(axes: Axes, curves: Curves) -> None:
    axes.set_xlim(-0.5 - 0.01 * curves.last, curves.last + 0.5 + 0.01 * curves.last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    epochs, iterations = curves.starts("epoch"), curves.starts()
    begun = {x for x, _ in iterations}
    if len(epochs) <= EPOCH_LINES:
        for x, _ in epochs:
            if x not in begun:
                axes.axvline(x - 0.5, color=MUTED, linewidth=0.6, linestyle=(0, (1, 3)))
    labelled = -(-len(iterations) // 12)
    for position, (x, iteration) in enumerate(iterations):
        if position:
            axes.axvline(x - 0.5, color=MUTED, linewidth=0.8, alpha=0.6)
        if position % labelled == 0:
            top = axes.get_xaxis_transform()
            axes.text(x, 1.01, str(iteration), transform=top, ha="left", va="bottom", fontsize=9, color=MUTED)


def _draw_gaps(axes: Axes, curves: Curves, column: str) -> None:
    """A red cross at the foot of the plot for each step that is not finite."""
    x = curves.not_finite(column)["x"].cast(pl.Float64).to_numpy()
    axes.plot(x, np.full(len(x), 0.03), "x", markersize=5, color=BAD, transform=axes.get_xaxis_transform(), clip_on=False)


def _gap_note(curves: Curves, column: str) -> str | None:
    bad = curves.not_finite(column)
    if bad.is_empty():
        return None
    first = bad.row(0, named=True)
    where = f"first at iteration {first['iteration']}, step {first['step']}"
    return f"{column} is NaN or infinite at {len(bad)} of {len(curves.frame)} steps ({where}); shown as gaps, marked ×."
