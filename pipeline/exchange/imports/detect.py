"""The formats that there are, and which one some rows are in."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from pipeline.common.errors import UserError
from pipeline.exchange.imports import formats as one_a_file
from pipeline.exchange.imports.format import Format


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
    fitting = [(len(signature), form.name) for form, signature in known if columns.issuperset(signature)]
    if not fitting:
        listed = "\n".join(f"  {form.name:14} {', '.join(signature)}" for form, signature in known)
        there = ", ".join(sorted(columns)[:20]) or "none"
        raise UserError(
            f"{where}: of no format that is known by its columns ({there}). These are:\n{listed}\n"
            "Say which with --format, or name its columns: --format plain --map prompt=... --map completion=..."
        )
    return formats()[max(fitting)[1]]
