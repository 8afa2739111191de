"""What the page is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    role: str
    """CSS variable of its color."""


@dataclass(frozen=True)
class Panel:
    """One plot with what is needed to read it."""

    title: str
    unit: str
    picture: Markup
    caption: str = ""
    keys: tuple[Key, ...] = ()
    notes: tuple[str, ...] = ()
    quiet: str = ""
    """What it would say, where that is no news; then the page folds it away."""


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with plots and a table under it, or one line that says why there is none."""

    slug: str
    title: str
    about: str = ""
    panels: tuple[Panel, ...] = ()
    grid: Grid | None = None
    notes: tuple[str, ...] = ()
    absent: str | None = None


def section(
    slug: str, title: str, parts: Iterable[Panel | str], about: str = "", *, grid: Grid | None = None, notes: Iterable[str] = ()
) -> Section:
    """A section of plots, some of which may be a line that says why there is none."""
    parts = list(parts)
    panels = tuple(part for part in parts if isinstance(part, Panel))
    why = [part for part in parts if isinstance(part, str)]
    if not panels:
        return Section(slug, title, grid=grid, absent=" ".join(why))
    return Section(slug, title, about, panels, grid, (*why, *notes))
