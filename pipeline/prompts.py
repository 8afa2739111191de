"""Prompts from JSONL, Parquet or a Hugging Face dataset: read, checked, rendered, kept as an artifact."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipeline.artifacts import Artifact, Request, Store, read_table
from pipeline.artifacts.files import sha256_of
from pipeline.artifacts.work import Work
from pipeline.config import PromptSource
from pipeline.errors import DataError, UserError
from schemas import Prompts

Render = Callable[[list[str]], list[str]]
FILE_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst", ".zip")
"""What ends like this is a file and not the name of a hub dataset."""


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
    _refuse_missing(source)
    return f"hub:{source.path}@{source.revision or 'default'}"


def _refuse_missing(source: PromptSource) -> None:
    path = Path(source.path)
    local = path.suffix in FILE_SUFFIXES or path.is_absolute() or source.path.startswith((".", "~")) or len(path.parts) > 2
    if local and not path.exists():
        raise UserError(f"{source.path}: no such file or directory")


def make_prompts(
    store: Store, request: Request, source: PromptSource, render: Render, disjoint_from: Artifact | None
) -> Artifact:
    """Read, check and render a source.

    Args:
        render: turns questions into the texts given to the model.
        disjoint_from: prompts that this source must not overlap with.

    Raises:
        DataError: names the file, the row and the column of the first problem of each kind.
    """
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        frame = load(source)
        if disjoint_from is not None:
            _refuse_overlap(source, frame, disjoint_from)
        frame = frame.with_columns(prompt_text=pl.Series(render(frame["question"].to_list()), dtype=pl.String))
        work.write_table("prompts.parquet", frame, Prompts)
        return work.finish({"prompts": len(frame)}, notes={"read_from": source.path})


def template_renderer(template: str) -> Render:
    """Fill {question} in; every other brace stays as it is.

    Raises:
        UserError: the template does not mention {question}.
    """
    if "{question}" not in template:
        raise UserError("data.template: has no {question} in it")
    return lambda questions: [template.replace("{question}", question) for question in questions]


def chat_renderer(tokenizer: Any, template: str, system: str | None) -> Render:
    """Render with the model's chat template, as a user's message with the assistant's turn opened.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("data.chat: this model's tokenizer has no chat template. Set chat: false and write data.template")
    fill = template_renderer(template)
    head = [{"role": "system", "content": system}] if system else []

    def render(questions: list[str]) -> list[str]:
        chats = [[*head, {"role": "user", "content": text}] for text in fill(questions)]
        return list(tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True))

    return render


def load(source: PromptSource) -> pl.DataFrame:
    """Rows of a source with the columns prompt_id, question, answer, metadata.

    Raises:
        DataError: names the file, the row and the column of the first problem.
    """
    name = source.path
    columns, rows = _read(source)
    if not rows:
        raise DataError(f"{name}: no rows. A prompts file needs at least one question with its answer")
    for role, column in (("question", source.question), ("answer", source.answer), ("prompt_id", source.prompt_id)):
        if column is not None and column not in columns:
            found = ", ".join(columns) or "no columns"
            raise DataError(f"{name}: no column {column!r} for the {role}; it has {found}. Name the right one in data.*.{role}")
    rows = rows[: source.limit]
    questions = _texts(name, source.question, rows)
    frame = pl.DataFrame(
        {
            "prompt_id": _texts(name, source.prompt_id, rows) if source.prompt_id else _hashed_ids(questions),
            "question": questions,
            "answer": _answers(name, source, _texts(name, source.answer, rows)),
            "metadata": _metadata(rows, used={source.question, source.answer, source.prompt_id}),
        },
        schema=dict.fromkeys(("prompt_id", "question", "answer", "metadata"), pl.String),
    )
    _refuse_bad_rows(name, frame, source)
    return frame


class _Rows(NamedTuple):
    """A source's rows as they came. A row may lack columns that others have."""

    columns: list[str]
    rows: list[dict[str, Any]]


def _read(source: PromptSource) -> _Rows:
    path = Path(source.path)
    _refuse_missing(source)
    if not path.is_file():
        return _of_frame(_read_dataset(source), source.limit)
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    if path.suffix != ".parquet":
        raise DataError(f"{path}: unknown kind of file; prompts are read from .jsonl, .parquet or a Hugging Face dataset")
    try:
        return _of_frame(pl.read_parquet(path, glob=False), source.limit)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _of_frame(frame: pl.DataFrame, limit: int | None) -> _Rows:
    return _Rows(frame.columns, (frame.head(limit) if limit else frame).to_dicts())


def _read_jsonl(path: Path) -> _Rows:
    """Not through a data frame: it would make one type of a column's 1 and 1.5, or 1 and "one"."""
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_json_object(path, number, line))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from None
    return _Rows(list(dict.fromkeys(key for row in rows for key in row)), rows)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is valid in JSON, but is not text
    except UnicodeEncodeError as error:
        raise DataError(f"{path}, line {number}: not text: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f'{path}, line {number}: expected an object such as {{"question": ...}}, found {type(value).__name__}')
    return value


def _read_dataset(source: PromptSource) -> pl.DataFrame:
    import datasets

    datasets.disable_progress_bars()
    saved = any((Path(source.path) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        if saved:
            dataset = datasets.load_from_disk(source.path)
        else:
            dataset = datasets.load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        absent = "" if Path(source.path).exists() else "no such file or directory, and "
        raise DataError(f"{source.path}: {absent}cannot be loaded as a Hugging Face dataset: {line}") from None
    if isinstance(dataset, dict):
        if source.split not in dataset:
            raise DataError(f"{source.path}: has the splits {', '.join(dataset)}; name one in data.*.split")
        dataset = dataset[source.split]
    return pl.from_arrow(dataset.with_format("arrow")[:])  # type: ignore[return-value]


def _texts(name: str, column: str, rows: list[dict[str, Any]]) -> list[str | None]:
    """A column as text; numbers are written as Python writes them, and NaN is null."""
    texts = []
    for number, row in enumerate(rows):
        value = row.get(column)
        if isinstance(value, list | dict | bytes):
            raise DataError(f"{name}, row {number}: column {column} holds a {type(value).__name__}, expected text")
        texts.append(None if value is None or value != value else str(value))
    return texts


def _answers(name: str, source: PromptSource, texts: list[str | None]) -> list[str | None]:
    if source.answer_pattern is None:
        return texts
    try:
        pattern = re.compile(source.answer_pattern)
    except re.error as error:
        raise UserError(f"answer_pattern: not a regular expression: {error}") from None
    answers = []
    for row, text in enumerate(texts):
        match = pattern.search(text or "")
        answer = match and match.group(1 if pattern.groups else 0)
        if answer is None:
            raise DataError(f"{name}, row {row}: column {source.answer} does not match answer_pattern {source.answer_pattern!r}")
        answers.append(answer.strip())
    return answers


def _metadata(rows: list[dict[str, Any]], used: set[str | None]) -> list[str | None]:
    rests = ({key: value for key, value in row.items() if key not in used} for row in rows)
    return [json.dumps(rest, ensure_ascii=False, default=str, sort_keys=True) if rest else None for rest in rests]


def _hashed_ids(questions: list[str | None]) -> list[str]:
    return [f"prompt-{hashlib.sha256((text or '').encode()).hexdigest()[:12]}" for text in questions]


def _refuse_bad_rows(name: str, frame: pl.DataFrame, source: PromptSource) -> None:
    checkable = frame.with_columns(prompt_text=pl.lit(""))
    bad = Prompts.check(checkable).bad
    if bad.is_empty():
        return
    first = bad.row(0, named=True)
    twice = "prompt_id is there twice" in first["reasons"]
    remedy = "Give every row an id of its own" if source.prompt_id else "Remove the repeated question"
    hint = f" ({first['prompt_id']!r}). {remedy}" if twice else ""
    count = f"; {len(bad)} of {len(frame)} rows are like that" if len(bad) > 1 else ""
    raise DataError(f"{name}, row {first['row']}: {first['reasons']}{hint}{count}")


def _refuse_overlap(source: PromptSource, frame: pl.DataFrame, other: Artifact) -> None:
    shared = frame.join(read_table(other, Prompts, ["question"]), on="question", how="semi")
    if not shared.is_empty():
        raise DataError(
            f"{source.path}: {len(shared)} questions are also training prompts, the first is {shared['prompt_id'][0]!r}. "
            "Remove them, or set data.allow_overlap: true"
        )
