"""The formats that there are, and which one some rows are in."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from pipeline.common.errors import UserError
from pipeline.exchange.imports import formats as one_a_file
from pipeline.exchange.imports.format import Format

MOST_LISTED = 20
"""Columns that a message names."""


@cache
def formats() -> dict[str, type[Format]]:
    """Every format by name: one in each module of `formats`."""
    modules = [
        importlib.import_module(f"{one_a_file.__name__}.{found.name}") for found in pkgutil.iter_modules(one_a_file.__path__)
    ]
    return {module.FORMAT.name: module.FORMAT for module in modules}


def detect(columns: set[str], where: str) -> type[Format]:
    """The format that some first rows are in.

    Args:
        columns: of these rows.
        where: the file, for the refusal.

    Raises:
        UserError: none is known by these columns.
    """
    known = [(form, signature) for form in formats().values() for signature in form.signatures]
    fitting = fitting_formats(columns)
    if not fitting:
        listed = "\n".join(f"  {form.name:14} {', '.join(signature)}" for form, signature in known)
        raise UserError(
            f"{where}: of no format that is known by its columns ({listed_columns(columns)}). These are:\n{listed}\n"
            "Say which with --format, or name its columns: --format plain --map prompt=... --map completion=..."
        )
    return formats()[fitting[0]]


def fitting_formats(columns: set[str]) -> list[str]:
    """Names of the formats that are known by some columns, the surest first."""
    known = [(form, signature) for form in formats().values() for signature in form.signatures]
    fitting = sorted(((len(signature), form.name) for form, signature in known if columns.issuperset(signature)), reverse=True)
    return list(dict.fromkeys(name for _, name in fitting))


def other_format(columns: set[str], form: type[Format]) -> str:
    """What may be done about rows of which none fits.

    Args:
        columns: of the first rows.
        form: what they were read as.
    """
    if not columns:
        return "No row could be read at all: expected JSON objects, one a line, or a table"
    there = f"The first rows have the columns {listed_columns(columns)}"
    others = [name for name in fitting_formats(columns) if name != form.name]
    if others:
        return f"{there}: by these they are {' or '.join(f'--format {name}' for name in others)}"
    if form.name in fitting_formats(columns):
        return f"{there}, as {form.name} has them: mend what the lines above say"
    known = [", ".join(signature) for signature in form.signatures]
    lacks = f"; {form.name} has {' or '.join(known)}" if known else ""
    return f"{there}{lacks}. No other format has these: name them, --format plain --map prompt=... --map completion=..."


def listed_columns(columns: set[str]) -> str:
    return ", ".join(sorted(columns)[:MOST_LISTED]) or "none"
