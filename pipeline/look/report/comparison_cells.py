"""Small pictures inside table cells. Only numbers are drawn, so they are safe to put in a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from pipeline.common.text import visible

WIDTH, HEIGHT, PAD, DOT = 220, 22, 10, 4.0


@dataclass(frozen=True)
class Scale:
    """A horizontal axis shared by the cells of one column."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float | None], *, from_zero: bool = False) -> Scale:
        there = [value for value in values if value is not None]
        low, high = min(there, default=0.0), max(there, default=1.0)
        low = min(low, 0.0) if from_zero else low
        return cls(low, high if high > low else low + 1.0)

    def x(self, value: float) -> float:
        return round(PAD + (WIDTH - 2 * PAD) * (value - self.low) / (self.high - self.low), 1)

    def axis(self, factor: float = 1.0) -> Markup:
        """Round numbers along it, to stand over the column; `factor` turns values into what is written."""
        ticks = MaxNLocator(nbins=4).tick_values(factor * self.low, factor * self.high)
        inside = [tick for tick in ticks if factor * self.low <= tick <= factor * self.high]
        texts = "".join(f'<text x="{self.x(tick / factor)}" y="10" text-anchor="middle">{tick:g}</text>' for tick in inside)
        return _picture(texts, height=12, label="axis")


def interval_cell(
    scale: Scale,
    value: float,
    interval: tuple[float | None, float | None],
    singles: Sequence[float],
    reference: float | None,
    role: str,
) -> Markup:
    """A dot with its interval, a ring for each single value, and a dashed line where the reference lies.

    Args:
        role: CSS variable of the color.
    """
    middle = HEIGHT / 2
    low, high = interval
    line = f'y1="{middle}" y2="{middle}" style="stroke: var(--{role}); stroke-width: 2"'
    parts = []
    if reference is not None:
        x = scale.x(reference)
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}"/>')
    if low is not None and high is not None:
        parts.append(f'<line x1="{scale.x(low)}" x2="{scale.x(high)}" {line}/>')
    parts += [
        f'<circle cx="{scale.x(single)}" cy="{middle}" r="{DOT - 1}" style="stroke: var(--{role}); fill: none"/>'
        for single in singles
    ]
    parts.append(f'<circle cx="{scale.x(value)}" cy="{middle}" r="{DOT}" style="fill: var(--{role})"/>')
    return _picture("".join(parts), height=HEIGHT, label=f"{value:.3g}")


def bar_cell(scale: Scale, parts: Sequence[tuple[float, str]]) -> Markup:
    """A bar of parts, each with the CSS variable of its color."""
    shapes, start = [], 0.0
    for value, role in parts:
        x, end = scale.x(start), scale.x(start + value)
        shapes.append(f'<rect x="{x}" width="{round(max(end - x, 0), 1)}" y="5" height="12" style="fill: var(--{role})"/>')
        start += value
    return _picture("".join(shapes), height=HEIGHT, label=f"{start:.3g}")


def breakable(label: str) -> Markup:
    """A label that may be broken before its settings."""
    return Markup(str(escape(visible(label))).replace(":", ":<wbr>").replace(",", ",<wbr>"))


def line_key(role: str, dashes: str) -> Markup:
    """A piece of a line as the curves draw it, for the legend."""
    return Markup(
        f'<svg class="line-key" viewBox="0 0 26 8" aria-hidden="true">'
        f'<line x1="1" x2="25" y1="4" y2="4" style="stroke: var(--{role}); stroke-width: 2.5" stroke-dasharray="{dashes}"/></svg>'
    )


def _picture(inner: str, *, height: int, label: str) -> Markup:
    return Markup(f'<svg class="cell" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{inner}</svg>')
