"""What a format is: columns that tell it from others, and what each of its rows says. One file in `formats` holds one."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from pipeline.common.errors import UserError
from pipeline.exchange.imports.known import Known, Misfit, Row

FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError)
"""What reading a row raises that does not fit."""
LONGEST_CONTENT = 20_000
"""Characters of a row that are kept of one that does not fit."""


@dataclass(frozen=True)
class Options:
    """What the user says of the columns."""

    columns: dict[str, str] = field(default_factory=dict)
    """Our names to the source's."""
    rewards: tuple[str, ...] | None = None
    """Columns that are parts of the reward, for formats that do not say which."""


class Format:
    """Base of every format. An instance reads one import, so it may remember what it saw."""

    name: ClassVar[str]
    """What --format calls it."""
    title: ClassVar[str]
    """Who writes it, and how it comes about."""
    signatures: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Columns by which it is known, and others. None: it is never guessed."""
    fields: ClassVar[dict[str, str]] = {}
    """What its columns are to us."""
    engine: ClassVar[str]
    """What stands in the column `engine`."""
    source: ClassVar[str] = "import"
    """What stands in the column `source`."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Of our names, those that may be mapped to other columns."""
    ends_with_eos: ClassVar[bool] = False
    """Whether its completions are whole answers, of which the end was drawn too."""

    def __init__(self, options: Options) -> None:
        if other := sorted(set(options.columns) - self.takes):
            known = f"it takes {', '.join(sorted(self.takes))}" if self.takes else "its columns are known. Try --format plain"
            raise UserError(f"--map {other[0]}={options.columns[other[0]]}: not of format {self.name}; {known}")
        self.options = options

    def read(self, rows: Iterable[Row]) -> Iterator[Known | Misfit]:
        """What the rows say, in their order."""
        for row in rows:
            yield from self.read_row(row)

    def read_row(self, row: Row) -> Iterable[Known | Misfit]:
        try:
            return list(self.known(row))
        except FAULTS as error:
            return [misfit(row, reason(error))]

    def known(self, row: Row) -> Iterable[Known | Misfit]:
        """The completions of a row. A part of it that does not fit may be set aside alone.

        Raises:
            ValueError: says which column is not what it should be.
        """
        raise NotImplementedError


def misfit(row: Row, why: str) -> Misfit:
    content = json.dumps(row.values, ensure_ascii=True, default=str)
    return Misfit(row.place, why, content[:LONGEST_CONTENT])


def reason(error: Exception) -> str:
    """Why a row does not fit."""
    return str(error) if type(error) is ValueError else f"not of this format: {type(error).__name__} {error}"


@cache
def formats() -> dict[str, type[Format]]:
    """Every format by name: one in each module of `formats`."""
    package = importlib.import_module("pipeline.exchange.imports.formats")
    modules = [importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)]
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


def as_json(value: dict[str, Any]) -> str | None:
    """A JSON object; None if it is empty."""
    return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True) if value else None
