"""What a plot tells where it is pointed at: the values behind it, kept with the picture for the page's script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pipeline.common.text import visible

DIGITS = 5
"""Significant digits that are kept of a value."""


@dataclass(frozen=True)
class Readout:
    """The values of one line, or of one part of the bars. NaN: there is none."""

    label: str
    role: str
    """CSS variable of its color."""
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    """Ends of the interval around each value."""
    pick: str | None = None
    """Id of the switch that shows this line alone, on a page that has such switches."""


def attribute(axes: Axes, size: tuple[int, int], readings: Sequence[Readout], *, at: str, unit: str) -> Markup:
    """The readings, and where on the picture values lie, as an attribute of its svg element; nothing where there are none.

    Args:
        axes: after the picture was drawn.
        size: width and height of the picture's view box.
        at: what the horizontal axis counts.
        unit: written behind each value.
    """
    if not readings:
        return Markup()
    place = axes.get_position()
    told = {
        "x": [size[0] * place.x0, size[0] * place.x1, *axes.get_xlim()],
        "y": [size[1] * (1 - place.y0), size[1] * (1 - place.y1), *axes.get_ylim()],
        "log": axes.get_yscale() == "log",
        "at": at,
        "unit": unit,
        "lines": [_line(reading) for reading in readings],
    }
    return Markup(' data-values="{}"').format(
        escape(json.dumps(told, allow_nan=False, separators=(",", ":"), ensure_ascii=False))
    )


def _line(reading: Readout) -> dict[str, Any]:
    line: dict[str, Any] = {"name": visible(reading.label), "role": reading.role, "x": _plain(reading.x), "y": _plain(reading.y)}
    if reading.low is not None and reading.high is not None:
        line |= {"low": _plain(reading.low), "high": _plain(reading.high)}
    return line | ({"pick": reading.pick} if reading.pick else {})


def _plain(values: NDArray[np.float64]) -> list[float | int | None]:
    """
    >>> _plain(np.array([2.0, 0.1234567, np.nan]))
    [2, 0.12346, None]
    """
    rounded = (float(f"{value:.{DIGITS}g}") for value in values)
    return [None if not np.isfinite(value) else int(value) if value.is_integer() else value for value in rounded]
