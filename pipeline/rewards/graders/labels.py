"""Labels joined to completions: what a file says of each, found by a hash of its key.

Held are some 50 bytes for a row, whatever its texts: two halves of the key's hash, the value, the row, the annotator, and the
completion that was labeled.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.common.errors import DataError, UserError
from pipeline.rewards.graders.label_rows import columns_of, has_decimal_comma, read_labels

KEYS = (
    "prompt_id+sample_index",
    "group_id+sample_index",
    "completion_sha256",
    "prompt_id+completion_sha256",
)
"""What a label can be found by."""
COMPLETION = "completion_sha256"


def completion_hash(text: str) -> str:
    """sha256 of a completion's text, in hex: the column `completion_sha256` of a file of labels.

    >>> completion_hash("4")[:16]
    '4b227777d4dd1fc6'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Label(NamedTuple):
    """What a file says of one completion."""

    value: float
    """The mean over its annotators."""
    place: str
    """The row."""
    fits: bool
    """False: the row names a completion, and it is another one."""


class Agreement(NamedTuple):
    """How far annotators agree, over the completions that more than one labeled."""

    completions: int
    equal: float
    """Share of pairs of labels of one completion that are equal."""
    alpha: float | None
    """Krippendorff's alpha with squared differences: 1 is agreement, 0 chance; None if all labels are equal."""


class Labels:
    """A file's labels, sorted by their key."""

    def __init__(
        self,
        path: Path,
        by: str,
        label: str,
        columns: Mapping[str, str],
        values: Mapping[str, float],
        annotator: str | None = None,
    ) -> None:
        """Read a file, row by row.

        Args:
            by: one of `KEYS`.
            label: column of the values.
            columns: the file's name of a key column, where it is another one.
            values: numbers that words stand for.
            annotator: column that says who labeled a row; then a completion may have several rows.

        Raises:
            UserError: no such file, or a column is missing.
            DataError: a value is no number, a key is incomplete, or a completion is labeled twice; names the rows.
        """
        self.path, self._keys = path, by.split("+")
        names = [columns.get(key, key) for key in self._keys]
        there = refuse_missing(path, [*names, label, *([annotator] if annotator else [])])
        checked = columns.get(COMPLETION, COMPLETION)
        self._checks = COMPLETION not in self._keys and checked in there
        wanted = [*names, label, *([checked] if self._checks else []), *([annotator] if annotator else [])]
        self._decimal_comma = has_decimal_comma(path)
        self._unit = "line" if path.suffix in (".jsonl", ".ndjson") else "row"
        self._read(wanted, values, annotated=annotator is not None)

    def _read(self, names: Sequence[str], values: Mapping[str, float], *, annotated: bool) -> None:
        high, low, rows, completions = (array("Q") for _ in range(4))
        numbers, people = array("d"), array("L")
        known: dict[str | None, int] = {}
        count = len(self._keys)
        self.without = 0
        for row in read_labels(self.path, names):
            value = self._number(row.values[count], row.place, names[count], values)
            if value is None:
                self.without += 1
                continue
            parts = [self._part(row.values[i], row.place, names[i]) for i in range(count)]
            first, second = _hashed([_plain(key, part) for key, part in zip(self._keys, parts, strict=True)])
            high.append(first)
            low.append(second)
            numbers.append(value)
            rows.append(int(row.place.rpartition(" ")[2]))
            if self._checks:
                completions.append(_first_half(self._part(row.values[count + 1], row.place, names[count + 1])))
            person = row.values[-1] if annotated else None
            people.append(known.setdefault(None if person is None else str(person), len(known)))
        order = np.lexsort((np.asarray(rows), np.asarray(people), np.asarray(low), np.asarray(high)))
        self._high, self._low, self._rows = (np.asarray(part, dtype=np.uint64)[order] for part in (high, low, rows))
        self._values, self._people = np.asarray(numbers, dtype=np.float64)[order], np.asarray(people)[order]
        self._completions = np.asarray(completions, dtype=np.uint64)[order] if self._checks else None
        self.annotators = len(known)
        same = (self._high[1:] == self._high[:-1]) & (self._low[1:] == self._low[:-1])
        self._refuse_twice(same, annotated=annotated)
        self._starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(self._high) else np.zeros(0, dtype=np.int64)

    def _part(self, value: Any, place: str, name: str) -> str:
        if value is None or value == "":
            raise DataError(f"{self.path}, {place}, column {name}: empty, expected what the label is found by. Fill it in")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a spreadsheet or a data frame made it a fraction
        return str(value)

    def _number(self, value: Any, place: str, name: str, values: Mapping[str, float]) -> float | None:
        """A label; None for an empty one."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        text = str(value).strip()
        try:
            number = float(values[text]) if text in values else float(text.replace(",", ".") if self._decimal_comma else value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            words = f" or one of {', '.join(values)}" if values else " (`values` gives words numbers: {yes: 1, no: 0})"
            raise DataError(f"{self.path}, {place}, column {name}: found {text[:80]!r}, expected a finite number{words}")
        return number

    def _refuse_twice(self, same: np.ndarray[Any, Any], *, annotated: bool) -> None:
        twice = same & (self._people[1:] == self._people[:-1])
        if not twice.any():
            return
        rows = np.stack([self._rows[:-1][twice], self._rows[1:][twice]], axis=1)
        first, second = rows[rows[:, 1].argmin()].tolist()
        who = " by one annotator" if annotated else ""
        remedy = "" if annotated else ", or name the column of the annotators (grader human)"
        raise DataError(
            f"{self.path}, {self._unit} {first} and {self._unit} {second}: the same {' and '.join(self._keys)}, labeled "
            f"twice{who} ({len(rows)} such rows). Remove one of them{remedy}"
        )

    def __len__(self) -> int:
        """Labeled completions."""
        return len(self._starts)

    @property
    def rows(self) -> int:
        """Labels."""
        return len(self._values)

    def find(self, key: Sequence[str], completion: str) -> Label | None:
        """The label of a completion; None if the file has none.

        Args:
            key: values of the columns of `by`, in their order.
        """
        high, low = _hashed(key)
        start = int(np.searchsorted(self._high, np.uint64(high)))
        while start < len(self._high) and int(self._high[start]) == high and int(self._low[start]) != low:
            start += 1
        stop = start
        while stop < len(self._high) and int(self._high[stop]) == high and int(self._low[stop]) == low:
            stop += 1
        if start == stop:
            return None
        fits = self._completions is None or bool(
            (self._completions[start:stop] == np.uint64(_first_half(completion_hash(completion)))).all()
        )
        value = math.fsum(self._values[start:stop].tolist()) / (stop - start)
        return Label(value, f"{self._unit} {int(self._rows[start])}", fits)

    def agreement(self) -> Agreement | None:
        """How far annotators agree; None if no completion has two labels.

        alpha = 1 - D_o / D_e; D_o is the mean squared difference of two labels of one completion, D_e of any two labels that
        can be paired (Krippendorff 2004, interval data).
        """
        sizes = np.diff(np.append(self._starts, len(self._values)))
        groups = [self._values[a : a + n] for a, n in zip(self._starts[sizes > 1], sizes[sizes > 1], strict=True)]
        if not groups:
            return None
        paired = np.concatenate(groups)
        equal = pairs = observed = 0.0
        for group in groups:
            n = len(group)
            _, counts = np.unique(group, return_counts=True)
            equal += float((counts * (counts - 1)).sum())
            pairs += n * (n - 1)
            observed += _squares(group) / (n - 1)
        expected = _squares(paired) / (len(paired) - 1)
        return Agreement(len(groups), equal / pairs, 1 - observed / expected if expected else None)


def only_value(path: Path, label: str, values: Mapping[str, float]) -> str | None:
    """What a file's labels all are, as it is written there; None if they differ, or it has none.

    Args:
        label: column of the values.
        values: numbers that words stand for.

    Raises:
        UserError, DataError: it cannot be read.
    """
    first: tuple[str, float | str] | None = None
    for row in read_labels(path, [label]):
        text = "" if row.values[0] is None else str(row.values[0]).strip()
        if not text:
            continue
        try:
            value: float | str = float(values.get(text, text))
        except ValueError:
            value = text
        first = first or (text, value)
        if value != first[1]:
            return None
    return first[0] if first else None


def refuse_missing(path: Path, names: Sequence[str]) -> list[str]:
    """The file's columns.

    Raises:
        UserError: one of these is missing; has the nearest name.
    """
    there = columns_of(path)
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(there) or 'none'}"
            raise UserError(f"{path}: no column {name!r}; {hint}. Name the file's columns in `label` and `columns`")
    return there


def _squares(values: np.ndarray[Any, Any]) -> float:
    """Σ over ordered pairs of (a - b)²."""
    centered = values - values.mean()
    return float(2 * len(values) * (centered**2).sum())


def _hashed(key: Sequence[str]) -> tuple[int, int]:
    digest = hashlib.blake2b("\0".join(key).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _plain(key: str, part: str) -> str:
    """A part of a key as a completion has it: a number that a data frame wrote to text as a fraction, a hash in capitals.

    >>> _plain("sample_index", "3.0"), _plain("prompt_id", "3.0"), _plain("completion_sha256", "4B22 ")
    ('3', '3.0', '4b22')
    """
    if key == "sample_index":
        whole, _, rest = part.strip().partition(".")
        return whole if not rest.strip("0") else part
    return part.strip().lower() if key == COMPLETION else part


def _first_half(digest: str) -> int:
    """The first 64 bits of a hash in hex; 0 if it is none."""
    try:
        return int(digest.strip().lower()[:16], 16)
    except ValueError:
        return 0
