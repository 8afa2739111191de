"""Plots as inline SVG that follows the page: colors are CSS variables, letters are text in the page's font.

No text from data is drawn: legends and captions are HTML, written and escaped by the page's template.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipeline.look.report.colors import INK, MUTED, ROLES, RULE, SERIES, role_of
from pipeline.look.report.readings import Readout, attribute

Values = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[Axes], None]

WIDTH, HEIGHT = 400, 220
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
}


def svg(
    name: str,
    draw: Draw,
    *,
    x_label: str,
    readings: Sequence[Readout] = (),
    at: str = "",
    unit: str = "",
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Markup:
    """Draw on one pair of axes and return the picture, safe to put in a page beside others.

    Args:
        name: unique in the page; prefixes every id of the picture.
        draw: draws with the colors of this module. What it gives the gid `series-N` gets the classes `series series-N`.
        x_label: written below the horizontal axis.
        readings: values that the page tells where the picture is pointed at.
        at: what a place on the horizontal axis is called with them; `x_label` by itself.
        unit: written behind each of these values.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**SETTINGS, "svg.hashsalt": name})
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="x", visible=False)
        draw(axes)
        _one_value(axes)
        axes.set_xlabel(x_label)
        file = io.StringIO()
        for patch in (figure.patch, axes.patch):
            patch.set_visible(False)
        canvas: Any = FigureCanvasSVG(figure)  # asked itself, it draws once, where savefig draws twice
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    told = attribute(axes, (width, height), readings, at=at or x_label, unit=unit)
    opening = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"'
    return Markup(_inline(name, file.getvalue()).replace("<svg>", f"{opening}{told}>", 1))


def _one_value(axes: Axes) -> None:
    """Where everything drawn has one value, that value is the only tick: a range around it would be invented."""
    low, high = axes.dataLim.intervaly
    if axes.get_autoscaley_on() and np.isfinite([low, high]).all() and high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) or 1.0
        axes.set_ylim(low - room, low + room)
        axes.set_yticks([low], [f"{low:.3g}"])


def _inline(name: str, text: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<svg [^>]*>", "<svg>", text, count=1)
    text = re.sub(r"<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="([^"]*)"', lambda found: _scoped_id(name, found.group(1)), text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)
    for color, role in ROLES.items():
        text = text.replace(color, f"var(--{role})")
    return re.sub(r"\n\s*", "\n", text).strip()


def _scoped_id(name: str, id: str) -> str:
    """Ids that the picture refers to (clip paths, markers) get the picture's name before them; the others go."""
    if re.fullmatch(r"series-\d+", id):
        return f' class="series {id}"'
    return f' id="{name}-{id}"' if re.fullmatch(r"[a-z][0-9a-f]{10}", id) else ""


def whole_numbers(axes: Axes, first: float, last: float) -> None:
    """Ticks of a horizontal axis of iterations."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlim(first - 0.5, last + 0.5)


def log_scale(axes: Axes, values: Values) -> None:
    """A logarithmic vertical axis with plainly written ticks, if the values are positive and span a factor of ten."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() <= 0 or finite.max() < 10 * finite.min():
        return
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(plain if finite.max() < 100 * finite.min() else NullFormatter())


def span(axes: Axes, values: Values) -> None:
    """A vertical axis from the least to the greatest of the finite values; around the one value where all are equal."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    low, high = float(finite.min()), float(finite.max())
    room = 0.0 if high > low else 0.05 * (abs(low) or 1.0)
    axes.set_ylim(low - room, high + room)


def line(axes: Axes, x: Values, y: Values, color: str, dashes: tuple[float, ...] = ()) -> None:
    """A line that breaks where a value is NaN; values that stand alone are dots.

    Args:
        dashes: lengths of strokes and gaps, in line widths; none for a solid line.
    """
    axes.plot(x, y, color=color, linestyle=(0, dashes) if dashes else "solid")
    there = np.isfinite(y)
    before, after = np.append(False, there[:-1]), np.append(there[1:], False)
    alone = there & ~before & ~after
    if len(x) <= 40:
        alone = there
    axes.plot(x[alone], y[alone], "o", markersize=3, color=color)


def band(axes: Axes, x: Values, low: Values, high: Values, color: str, alpha: float) -> None:
    axes.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0)


def points_with_intervals(
    axes: Axes, x: Values, value: Values, low: Values, high: Values, color: str, dashes: tuple[float, ...] = ()
) -> None:
    axes.vlines(x, low, high, color=color, linewidth=1.2)
    axes.plot(x, value, marker="o", markersize=4, color=color, linestyle=(0, dashes) if dashes else "solid")


def stacked(axes: Axes, x: Values, parts: Iterable[Values], colors: Sequence[str]) -> None:
    """One bar per x, its parts from the bottom up."""
    bottom = np.zeros(len(x))
    for values, color in zip(parts, colors, strict=True):
        axes.bar(x, values, bottom=bottom, color=color, width=0.72, linewidth=0)
        bottom = bottom + values
    whole_numbers(axes, float(x.min()), float(x.max()))


def bars(name: str, x: Values, parts: Sequence[Values], colors: Sequence[str], labels: Sequence[str], *, unit: str) -> Markup:
    """One bar per iteration, its parts from the bottom up, told from the top down."""
    readings = [Readout(label, role_of(color), x, part) for label, part, color in zip(labels, parts, colors, strict=True)]
    return svg(name, lambda axes: stacked(axes, x, parts, colors), x_label="iteration", readings=readings[::-1], unit=unit)


def cycle(count: int, colors: Sequence[str] = SERIES) -> list[str]:
    return [colors[number % len(colors)] for number in range(count)]
