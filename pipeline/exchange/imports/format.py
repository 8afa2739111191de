"""What a format is: columns that tell it from others, and what each of its rows says. One file in `formats` holds one,
and `detect` finds it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pipeline.common.errors import UserError
from pipeline.exchange.imports.known import Known, Misfit, SourceRow

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
    """SaidColumns that are parts of the reward, for formats that do not say which."""
    explode: tuple[str, ...] = ()
    """SaidColumns of aligned lists, each place of which is a row of its own."""


class SaidColumns(NamedTuple):
    """What many rows say, value by value."""

    values: dict[str, list[Any]]
    """By our names."""
    components: dict[str, list[Any]]
    """Parts of the reward."""
    rest: list[dict[str, Any]] | None
    """SaidColumns that have no place in the rollouts; None where no row has any."""


class Format:
    """Base of every format. An instance reads one import, so it may remember what it saw."""

    name: ClassVar[str]
    """What --format calls it."""
    title: ClassVar[str]
    """Who writes it, and how it comes about."""
    signatures: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """SaidColumns by which it is known, and others. None: it is never guessed."""
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
    remembers: ClassVar[bool] = False
    """Whether what a row says depends on rows before it, so that a killed import reads them again."""
    not_rows: ClassVar[tuple[str, ...]] = ()
    """Patterns of names of files that lie among its files and hold no completions."""

    def __init__(self, options: Options) -> None:
        if other := sorted(set(options.columns) - self.takes):
            known = f"it takes {', '.join(sorted(self.takes))}" if self.takes else "its columns are known. Try --format plain"
            raise UserError(f"--map {other[0]}={options.columns[other[0]]}: not of format {self.name}; {known}")
        self.options = options
        self.remarks: dict[str, None] = {}
        """What a reader of the result must know of how it was read, each said once."""

    @classmethod
    def beside(cls, file: Path) -> Path | None:
        """A file beside a source file that says more of its rows, if there is one."""
        return None

    @classmethod
    def refuse(cls, files: Sequence[Path]) -> None:
        """
        Raises:
            UserError: these files do not belong into one import.
        """

    @classmethod
    def ordered(cls, files: Sequence[Path]) -> Sequence[Path]:
        """The files in the order in which they are read."""
        return files

    def remark(self, text: str) -> None:
        self.remarks[text] = None

    def reward_of(self, metrics: Mapping[str, float | None]) -> float | None:
        """The first of a completion's metrics, or the sum of those that --rewards names; None if one of them has no value.

        Raises:
            ValueError: the completion has metrics, but not one that --rewards names.
        """
        names = self.options.rewards
        if names is None or not metrics:
            if len(metrics) > 1:
                first = next(iter(metrics))
                self.remark(f"the reward is {first}, the first of the metrics {', '.join(metrics)}. Otherwise: --rewards")
            return next(iter(metrics.values()), None)
        if missing := [name for name in names if name not in metrics]:
            raise ValueError(f"no metric {missing[0]!r}, which --rewards names; there are {', '.join(metrics)}")
        values = [metrics[name] for name in names]
        return None if None in values else math.fsum(value for value in values if value is not None)

    def columns(self, rows: Sequence[SourceRow]) -> SaidColumns | None:
        """What rows of one form say, column by column and unchecked; None where each must be looked at by itself."""
        return None

    def read(self, rows: Iterable[SourceRow]) -> Iterator[Known | Misfit]:
        """What the rows say, in their order."""
        for row in rows:
            yield from self.read_row(row)

    def read_row(self, row: SourceRow) -> Iterable[Known | Misfit]:
        try:
            return list(self.known(row))
        except FAULTS as error:
            return [misfit(row, reason(error))]

    def known(self, row: SourceRow) -> Iterable[Known | Misfit]:
        """The completions of a row. A part of it that does not fit may be set aside alone.

        Raises:
            ValueError: says which column is not what it should be.
        """
        raise NotImplementedError


def misfit(row: SourceRow, why: str) -> Misfit:
    content = json.dumps(row.values, ensure_ascii=True, default=str)
    return Misfit(row.place, why, content[:LONGEST_CONTENT])


def reason(error: Exception) -> str:
    """Why a row does not fit."""
    return str(error) if type(error) is ValueError else f"not of this format: {type(error).__name__} {error}"


def as_json(value: dict[str, Any]) -> str | None:
    """A JSON object; None if it is empty."""
    return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True) if value else None
