"""One set's rows as prompts: which columns are the question and its reference, and which rows do not fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from pipeline.common.errors import DataError, UserError
from pipeline.common.paths import at_path
from pipeline.common.spelled import spelled
from pipeline.config.data import QuestionSet
from pipeline.sources.dialogues import EARLIER, Asked, asked_of, divided, is_chat, read_transcript
from pipeline.sources.filters import where
from pipeline.sources.readers import BadRow, SourceRows, read_rows
from schemas import Prompts

Misfits = Callable[[list[Asked]], dict[int, str]]
"""Of what is asked: why prompts do not fit, by their number."""
COLUMNS = ("prompt_id", "question", "answer", "metadata")
MOST_TOLD = 5
"""Bad rows that a refusal names."""


@dataclass
class SetRows:
    """A set's rows."""

    good: pl.DataFrame
    """prompt_id, question, answer, metadata."""
    numbers: list[int]
    """Of the good rows in the set."""
    bad: list[BadRow]
    unit: str

    def without(self, why: dict[int, str]) -> SetRows:
        """Without the good rows that have a reason, which become bad ones."""
        if not why:
            return self
        content = (_as_json(row) for row in self.good.iter_rows(named=True))
        bad = sorted([*self.bad, *(BadRow(self.numbers[i], why[i], text) for i, text in enumerate(content) if i in why)])
        numbers = [number for i, number in enumerate(self.numbers) if i not in why]
        return SetRows(self.good.filter(~pl.int_range(pl.len()).is_in(list(why))), numbers, bad, self.unit)

    def drawn(self, count: int, lot: int | None) -> pl.DataFrame:
        """The first good rows, or as many drawn by lot: those whose ids hash lowest with the seed. In the set's order."""
        if lot is None or count >= len(self.good):
            return self.good.head(count)
        order = [hashlib.sha256(f"{lot}\n{name}".encode()).digest() for name in self.good["prompt_id"]]
        chosen = sorted(range(len(order)), key=order.__getitem__)[:count]
        return self.good[sorted(chosen)]


def read_set(one: QuestionSet, misfits: Misfits | None = None) -> SetRows:
    """Split a set into rows that fit and rows that do not.

    Args:
        misfits: says which prompts do not fit.

    Raises:
        UserError: no such file or column, or an expression that cannot be asked.
        DataError: it cannot be read, or has no rows.
    """
    found = read_rows(one)
    if not found.rows and not found.bad:
        raise DataError(f"{one.path}: no rows. A prompts file needs at least one question with its answer")
    if found.rows and one.where is not None:
        found = where(found, one.where, one.path)
        if one.lot is None and one.limit is not None:
            found = replace(found, rows=found.rows[: one.limit], numbers=found.numbers[: one.limit])
    if found.rows:
        _refuse_absent(one, found)
    rows = _sift(one, found)
    return rows if misfits is None else rows.without(misfits(asked_of(rows.good)))


def refuse_bad(one: QuestionSet, rows: SetRows) -> None:
    """
    Raises:
        DataError: a row does not fit and the set does not set such rows aside, or none fits; names file, row and column.
    """
    if rows.bad and (one.bad_rows == "refuse" or rows.good.is_empty()):
        raise DataError(_refusal(one.path, rows.unit, rows.bad, len(rows.good)))


def worked_solutions(one: QuestionSet) -> dict[str, str]:
    """Of a set whose answers are taken out of worked solutions: those, by the question. {} of any other.

    Raises:
        UserError, DataError: it cannot be read.
    """
    if one.answer_pattern is None:
        return {}
    texts = ((row.get(one.question), row.get(one.answer)) for row in read_rows(one).rows)
    return {question: solution for question, solution in texts if isinstance(question, str) and isinstance(solution, str)}


def _refuse_absent(one: QuestionSet, found: SourceRows) -> None:
    """
    Raises:
        DataError: no column of that name, or nothing at that place in any row.
    """
    for role, column in (("question", one.question), ("answer", one.answer), ("prompt_id", one.prompt_id)):
        if column is None or column in found.columns:
            continue
        root = column.partition(".")[0]
        if root == column or root not in found.columns:
            there = ", ".join(found.columns) or "no columns"
            raise DataError(
                f"{one.path}: no column {column!r} for the {role}; it has {there}. Name the right one in data.*.{role}"
            )
        if all(_at(row, column) is None for row in found.rows):
            parts = ", ".join(_parts(row.get(root)) for row in found.rows[:1]) or "nothing"
            raise DataError(
                f"{one.path}: no row has anything at {column!r} for the {role}; {root} of the first has {parts}. Name the right "
                f"place in data.*.{role}"
            )


def _parts(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name!r}" for name in value)
    return f"a {type(value).__name__}"


def _at(row: dict[str, Any], column: str) -> Any:
    """What a name leads to; None where it leads nowhere."""
    try:
        return at_path(row, column)
    except (KeyError, ValueError):
        return None


def _sift(one: QuestionSet, found: SourceRows) -> SetRows:
    """Rows that are prompts, with their numbers in the source, and the others."""
    texts, numbers, bad = [], [], list(found.bad)
    answer_of, used = _answer_reader(one), {one.question, one.answer, one.prompt_id}
    first: dict[tuple[str | None, ...], int] = {}
    for number, row in zip(found.numbers, found.rows, strict=True):
        try:
            (question, earlier), answer = _question(row, one), answer_of(row)
            prompt_id = _text(row, one.prompt_id) if one.prompt_id else _hashed_id(question, earlier)
            metadata = _metadata(row, used, earlier)
            key = (prompt_id, question, answer, _as_json({EARLIER: earlier}) if earlier else None)
            if (before := first.setdefault(key, number)) != number:
                raise ValueError(f"repeats {found.unit} {before}")
            texts.append((prompt_id, question, answer, metadata))
            numbers.append(number)
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(number, str(error), _as_json(row)))
    frame = pl.DataFrame(texts, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")
    checked = Prompts.check(frame.with_columns(prompt_text=pl.lit("")))
    for row in checked.bad.iter_rows(named=True):
        content = _as_json({name: row[name] for name in COLUMNS})
        bad.append(BadRow(numbers[row["row"]], _explained(row, one), content))
    wrong = set(checked.bad["row"].to_list())
    kept = [number for place, number in enumerate(numbers) if place not in wrong]
    return SetRows(checked.good.select(COLUMNS), kept, sorted(bad), found.unit)


def _question(row: dict[str, Any], one: QuestionSet) -> tuple[str | None, list[dict[str, Any]]]:
    """The question, and the messages before it.

    Raises:
        ValueError: neither text, a number nor chat messages.
    """
    value = _at(row, one.question)
    if one.transcript:
        value = read_transcript(value if isinstance(value, str) else "", one.question)
    return divided(value, one.question) if is_chat(value) else (_text(row, one.question), [])


def _text(row: dict[str, Any], column: str) -> str | None:
    """A value as text: numbers as people write them, NaN as null.

    Raises:
        ValueError: it is neither text nor a number.
    """
    value = _at(row, column)
    if isinstance(value, dict):
        inside = f" with {_parts(value)}: name one of them, such as {column}.{next(iter(value))}" if value else ""
        raise ValueError(f"column {column} holds a dict{inside}, expected text")
    if isinstance(value, list | bytes):
        raise ValueError(f"column {column} holds a {type(value).__name__}, expected text")
    return None if value is None or value != value else spelled(value)


def _reference(row: dict[str, Any], column: str) -> str | None:
    """The answer as text; of a list its only item, or all of it as JSON.

    Raises:
        ValueError: neither text, a number nor a list.
    """
    value = _at(row, column)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, default=str) if value else None
    return _text({column: value}, column)


def _answer_reader(one: QuestionSet) -> Callable[[dict[str, Any]], str | None]:
    """What takes the answer out of a row.

    Raises:
        UserError: answer_pattern is not a regular expression.
    """
    if one.answer_pattern is None:
        return lambda row: _reference(row, one.answer)
    try:
        pattern = re.compile(one.answer_pattern)
    except re.error as error:
        raise UserError(f"answer_pattern: not a regular expression: {error}") from None

    def read(row: dict[str, Any]) -> str:
        match = pattern.search(_reference(row, one.answer) or "")
        answer = match and match.group(1 if pattern.groups else 0)
        if answer is None:
            raise ValueError(f"column {one.answer} does not match answer_pattern {one.answer_pattern!r}")
        return answer.strip()

    return read


def _metadata(row: dict[str, Any], used: set[str | None], earlier: list[dict[str, Any]]) -> str | None:
    """The other columns. What a column `metadata` holds stands beside them, unless a name would be there twice.

    Raises:
        ValueError: a column has the name of the messages before the question.
    """
    rest = {key: value for key, value in row.items() if key not in used}
    inner = _as_object(rest.get("metadata"))
    if inner is not None and not inner.keys() & (rest.keys() - {"metadata"}):
        rest = {**{key: value for key, value in rest.items() if key != "metadata"}, **inner}
    if EARLIER in rest:
        raise ValueError(f"column {EARLIER}: the name of what is said before a question; call the column otherwise")
    if earlier:
        rest[EARLIER] = earlier
    return _as_json(rest) if rest else None


def _as_object(value: Any) -> dict[str, Any] | None:
    """A JSON object, or text that holds one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)


def _hashed_id(question: str | None, earlier: list[dict[str, Any]]) -> str:
    said = f"{_as_json({EARLIER: earlier})}\n{question}" if earlier else question or ""
    return f"prompt-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _explained(row: dict[str, Any], one: QuestionSet) -> str:
    """A bad row's reasons; of a repeated id, what is repeated."""
    if "prompt_id is there twice" not in row["reasons"]:
        return str(row["reasons"])
    what = "Give every row an id of its own" if one.prompt_id else "Its question is there with another answer"
    return f"{row['reasons']} ({row['prompt_id']!r}). {what}"


def _refusal(name: str, unit: str, bad: list[BadRow], good: int) -> str:
    """The first bad rows with their reasons, and the remedy."""
    told = [f"{name}, {unit} {bad[0].number}: {bad[0].reasons}"]
    told += [f"{unit} {row.number}: {row.reasons}" for row in bad[1:MOST_TOLD]]
    if len(bad) > 1:
        told.append(f"{len(bad)} of {len(bad) + good} rows do not fit.")
    remedy = "Mend them" if len(bad) > 1 else "Mend it"
    if good:
        remedy += ", or set bad_rows: set_aside in that source to go on without such rows"
    return "\n  ".join([*told, remedy + "."])
