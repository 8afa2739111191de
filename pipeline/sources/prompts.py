"""Prompts from JSONL, Parquet or a Hugging Face dataset: read, checked, rendered, kept as an artifact."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipeline.common.errors import DataError, UserError
from pipeline.common.spelled import spelled
from pipeline.config.data import PromptSource
from pipeline.run.process import Event, Reporter
from pipeline.sources.readers import BadRow, SourceRows, read_rows, refuse_missing
from pipeline.sources.rendering import Render, Rendering
from pipeline.store import Artifact, Request, Store, read_table
from pipeline.store.files import sha256_of
from pipeline.store.store import load_artifact, verified
from pipeline.store.work import Work
from schemas import Prompts, SetAside

Misfits = Callable[[list[str]], dict[int, str]]
"""Of questions: why prompts do not fit, by the question's number."""
COLUMNS = ("prompt_id", "question", "answer", "metadata")
ASIDE = "set-aside.parquet"
MOST_TOLD = 5
"""Bad rows that a refusal names."""


def source_hash(source: PromptSource) -> str:
    """What identifies the source's content: the hash of its bytes, or a hub dataset's name and revision.

    Raises:
        UserError: no such file, and not a hub name either.
    """
    path = Path(source.path)
    if path.is_file():
        return sha256_of(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "\n".join(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    refuse_missing(source)
    return f"hub:{source.path}@{source.revision or 'default'}"


def rows_hash(prompts: pl.DataFrame) -> str:
    """What identifies prompts: the hash of their ids, questions, answers and metadata, in their order."""
    digest = hashlib.sha256()
    for row in prompts.select(COLUMNS).iter_rows():
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def make_prompts(
    store: Store,
    request: Request,
    source: PromptSource,
    render: Render,
    disjoint_from: Artifact | None,
    misfits: Misfits | None = None,
) -> Artifact:
    """Read, check and render a source.

    What is set aside is recorded beside the prompts, and is no part of what they are: without those rows they are the same.

    Args:
        render: turns questions into the texts given to the model.
        disjoint_from: prompts that this source must not overlap with.
        misfits: says which prompts do not fit.

    Raises:
        DataError: names the file, and the row and column of the first problems.
    """
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        frame, bad = load(source, misfits)
        if disjoint_from is not None:
            _refuse_overlap(source, frame, disjoint_from)
        frame = frame.with_columns(prompt_text=pl.Series(render(frame["question"].to_list()), dtype=pl.String))
        work.write_table("prompts.parquet", frame, Prompts)
        notes: dict[str, Any] = {"read_from": source.path, "source_hash": source_hash(source)}
        if not bad.is_empty():
            work.write_table(ASIDE, bad, SetAside)
            notes["set_aside"] = len(bad)
        return work.finish({"prompts": len(frame)}, outside_id=(ASIDE,), notes=notes)


def work(spec: Event, reporter: Reporter) -> Event:
    """Make the prompts of a spec.

    Args:
        spec: store, and jobs: a list of {request, source (a PromptSource), rendering (a Rendering), disjoint_from (path of an
            artifact, or null)}.

    Returns:
        {"artifacts": paths, in the order of the jobs}.
    """
    store, made = Store(spec["store"], reporter.note), []
    for job in spec["jobs"]:
        source = PromptSource.model_validate(job["source"])
        disjoint_from = load_artifact(job["disjoint_from"]) if job["disjoint_from"] else None
        rendering = Rendering(**job["rendering"])
        if rendering.chat:
            verified(rendering.model)
        request, render = Request.from_json(job["request"]), rendering.renderer()
        made.append(make_prompts(store, request, source, render, disjoint_from, rendering.misfits))
    return {"artifacts": [str(artifact.path) for artifact in made]}


def rows_of(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """Rows of a prompts artifact, read when the first is asked for."""
    yield from read_table(artifact, Prompts).iter_rows(named=True)


class Sifted(NamedTuple):
    """A source's rows."""

    good: pl.DataFrame
    """prompt_id, question, answer, metadata."""
    bad: pl.DataFrame
    """The others: rows of a `SetAside` table, in the order of the source."""


def load_once(source: PromptSource, rendering: Rendering) -> Sifted:
    """A source's rows, of which those do not fit whose prompts leave no room for a completion. Read once while it is the same.

    Raises:
        DataError: as `load`.
    """
    return _load(source.model_dump_json(), source_hash(source), rendering)


@lru_cache(maxsize=4)
def _load(source: str, digest: str, rendering: Rendering) -> Sifted:
    return load(PromptSource.model_validate_json(source), rendering.misfits)


def load(source: PromptSource, misfits: Misfits | None = None) -> Sifted:
    """Split a source into rows that fit and rows that do not.

    Args:
        misfits: says which prompts do not fit.

    Raises:
        DataError: a row does not fit and the source does not set such rows aside, or none fits; names file, row and column.
    """
    name, found = source.path, read_rows(source)
    if not found.rows and not found.bad:
        raise DataError(f"{name}: no rows. A prompts file needs at least one question with its answer")
    for role, column in (("question", source.question), ("answer", source.answer), ("prompt_id", source.prompt_id)):
        if found.rows and column is not None and column not in found.columns:
            there = ", ".join(found.columns) or "no columns"
            raise DataError(f"{name}: no column {column!r} for the {role}; it has {there}. Name the right one in data.*.{role}")
    good, numbers, bad = _sift(source, found)
    if misfits is not None and (why := misfits(good["question"].to_list())):
        content = (_as_json(row) for row in good.iter_rows(named=True))
        bad = sorted([*bad, *(BadRow(numbers[i], why[i], text) for i, text in enumerate(content) if i in why)])
        good = good.filter(~pl.int_range(pl.len()).is_in(list(why)))
    if bad and (source.bad_rows == "refuse" or good.is_empty()):
        raise DataError(_refusal(name, found.unit, bad, len(good)))
    rows = [(f"{found.unit} {row.number}", row.reasons, row.content) for row in bad]
    return Sifted(good, pl.DataFrame(rows, schema=dict.fromkeys(SetAside.columns(), pl.String), orient="row"))


def worked_solutions(source: PromptSource) -> dict[str, str]:
    """Of a source whose answers are taken out of worked solutions: those, by the question. {} of any other.

    Raises:
        UserError, DataError: it cannot be read.
    """
    if source.answer_pattern is None:
        return {}
    texts = ((row.get(source.question), row.get(source.answer)) for row in read_rows(source).rows)
    return {question: solution for question, solution in texts if isinstance(question, str) and isinstance(solution, str)}


def _sift(source: PromptSource, found: SourceRows) -> tuple[pl.DataFrame, list[int], list[BadRow]]:
    """Rows that are prompts, with their numbers in the source, and the others."""
    texts, numbers, bad = [], [], list(found.bad)
    answer_of, used = _answer_reader(source), {source.question, source.answer, source.prompt_id}
    first: dict[tuple[str | None, ...], int] = {}
    for number, row in zip(found.numbers, found.rows, strict=True):
        try:
            question, answer = _text(row, source.question), answer_of(row)
            prompt_id = _text(row, source.prompt_id) if source.prompt_id else _hashed_id(question)
            if (before := first.setdefault((prompt_id, question, answer), number)) != number:
                raise ValueError(f"repeats {found.unit} {before}")
            texts.append((prompt_id, question, answer, _metadata(row, used)))
            numbers.append(number)
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(number, str(error), _as_json(row)))
    frame = pl.DataFrame(texts, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")
    checked = Prompts.check(frame.with_columns(prompt_text=pl.lit("")))
    for row in checked.bad.iter_rows(named=True):
        content = _as_json({name: row[name] for name in COLUMNS})
        bad.append(BadRow(numbers[row["row"]], _explained(row, source), content))
    wrong = set(checked.bad["row"].to_list())
    return checked.good.select(COLUMNS), [n for row, n in enumerate(numbers) if row not in wrong], sorted(bad)


def _text(row: dict[str, Any], column: str) -> str | None:
    """A value as text: numbers as people write them, NaN as null.

    Raises:
        ValueError: it is neither text nor a number.
    """
    value = row.get(column)
    if isinstance(value, list | dict | bytes):
        raise ValueError(f"column {column} holds a {type(value).__name__}, expected text")
    return None if value is None or value != value else spelled(value)


def _answer_reader(source: PromptSource) -> Callable[[dict[str, Any]], str | None]:
    """What takes the answer out of a row.

    Raises:
        UserError: answer_pattern is not a regular expression.
    """
    if source.answer_pattern is None:
        return lambda row: _text(row, source.answer)
    try:
        pattern = re.compile(source.answer_pattern)
    except re.error as error:
        raise UserError(f"answer_pattern: not a regular expression: {error}") from None

    def read(row: dict[str, Any]) -> str:
        match = pattern.search(_text(row, source.answer) or "")
        answer = match and match.group(1 if pattern.groups else 0)
        if answer is None:
            raise ValueError(f"column {source.answer} does not match answer_pattern {source.answer_pattern!r}")
        return answer.strip()

    return read


def _metadata(row: dict[str, Any], used: set[str | None]) -> str | None:
    """The other columns. What a column `metadata` holds stands beside them, unless a name would be there twice."""
    rest = {key: value for key, value in row.items() if key not in used}
    inner = _as_object(rest.get("metadata"))
    if inner is not None and not inner.keys() & (rest.keys() - {"metadata"}):
        rest = {**{key: value for key, value in rest.items() if key != "metadata"}, **inner}
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


def _hashed_id(question: str | None) -> str:
    return f"prompt-{hashlib.sha256((question or '').encode()).hexdigest()[:12]}"


def _explained(row: dict[str, Any], source: PromptSource) -> str:
    """A bad row's reasons; of a repeated id, what is repeated."""
    if "prompt_id is there twice" not in row["reasons"]:
        return str(row["reasons"])
    what = "Give every row an id of its own" if source.prompt_id else "Its question is there with another answer"
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


def _refuse_overlap(source: PromptSource, frame: pl.DataFrame, other: Artifact) -> None:
    shared = frame.join(read_table(other, Prompts, ["question"]), on="question", how="semi")
    if not shared.is_empty():
        raise DataError(
            f"{source.path}: {len(shared)} questions are also training prompts, the first is {shared['prompt_id'][0]!r}. "
            "Remove them, or set data.allow_overlap: true"
        )
