"""Rows of source files, one after the other: what a file holds is never in memory as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import memory
from pipeline.common.errors import DataError, UserError
from pipeline.common.footers import refuse_damaged
from pipeline.common.near import did_you_mean
from pipeline.exchange.imports.format import LONGEST_CONTENT
from pipeline.exchange.imports.known import Misfit, Position, SourceRow
from pipeline.sources.readers import (
    BATCH_ROWS,
    JSONL,
    LFS,
    PACKED,
    flat_objects,
    is_jsonl,
    json_object,
    numbered_lines,
    open_lines,
)
from pipeline.store.space import readable

FOLDER_SUFFIXES = (*JSONL, ".parquet", ".arrow", ".eval", ".pt", ".db", ".sqlite")
"""Of files that are read from a directory; those of lines may be packed. A .json is read where it is named: most of
them describe others."""
SUFFIXES = (*FOLDER_SUFFIXES, ".json")
ARGUMENTS = "arguments"
"""Name of what a tool is called with."""
DATA = "data"
"""Where the files of a Hugging Face data set lie."""
EXPORT = "rollbook-export.json"
"""The record of `rollbook export`."""
BESIDE = ("origins", "remarks", "turns")
"""Tables of an export that are no completions, by the beginnings of their files' names."""
TOGETHER, SIZE_TOGETHER = 4096, 16 << 20
"""Rows of a batch, and characters of their texts, about."""
LINES, BYTES = 512, 1 << 20
"""Lines that are read at once, and what they hold."""
Block = tuple[list[SourceRow | Misfit], int]
"""Some rows of a file, and about how much they hold."""
BELOW = ("*/*", "*/*/*")
"""Where files lie of which a directory has none itself."""
SIZED = {str, list, dict, bytes}
LOOKED_AT = 16
"""First rows whose columns say the format."""


def source_files(paths: Sequence[Path], not_rows: Sequence[str] = ()) -> list[Path]:
    """The files that some paths name: of a directory all that can be read, step 2 before step 10.

    Args:
        not_rows: patterns of names that are passed over, for they hold no completions.

    Raises:
        UserError: nothing there, a file of another kind, or one file by two names.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(_in_directory(path, not_rows), key=_natural)
        elif not path.exists():
            raise UserError(f"{path}: no such file or directory{did_you_mean(path)}")
        elif path.suffix not in SUFFIXES and not is_jsonl(path):
            raise UserError(
                f"{path}: unknown kind of file; completions are read from {', '.join(SUFFIXES)}, "
                f"and lines packed as {', '.join(PACKED)}"
            )
        else:
            files.append(path)
    if len(files) > 1:
        rows = [file for file in files if not any(fnmatch(file.name, pattern) for pattern in not_rows)]
        files = rows or files
    _refuse_twice(files)
    return files


def _in_directory(path: Path, not_rows: Sequence[str]) -> list[Path]:
    """What can be read of a directory; of an export, or a data set in the hub's layout, the completions in its data/.

    Raises:
        UserError: nothing.
    """
    found = [file for file in path.iterdir() if _is_source(file) and file.is_file()]
    wanted = [file for file in found if not any(fnmatch(file.name, pattern) for pattern in not_rows)]
    if not found and (path / DATA).is_dir():
        beside = BESIDE if (path / EXPORT).is_file() else ()
        wanted = [file for file in _in_directory(path / DATA, not_rows) if file.name.partition("-")[0] not in beside]
    if not wanted:
        only = f", only {found[0].name}, which holds no completions" if found else ""
        model = ". It is a model: name it with --model, or as model.path of a run" * (path / "config.json").is_file()
        below = next((file for depth in BELOW for file in sorted(path.glob(depth)) if _is_source(file)), None)
        there = f". There is {below.relative_to(path)}: name the directories below, such as {below.parent}" if below else ""
        raise UserError(f"{path}: no {', '.join(FOLDER_SUFFIXES)} file in this directory{only}{model}{there}")
    return wanted


def _is_source(file: Path) -> bool:
    return file.suffix in FOLDER_SUFFIXES or is_jsonl(file)


def _refuse_twice(files: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        before = seen.get(file.resolve())
        if before is not None:
            raise UserError(f"{file}: named twice{f', also as {before}' if before != file else ''}")
        seen[file.resolve()] = file


def names_of(files: Sequence[Path]) -> list[str]:
    """What the files are called in records: their names, with folders where two would be alike."""
    depth = 1
    while len({_tail(file, depth) for file in files}) < len(files):
        depth += 1
    return [_tail(file, depth) for file in files]


def read_rows(files: Sequence[Path]) -> Iterator[SourceRow | Misfit]:
    """Every row of every file.

    Raises:
        DataError: a file cannot be read at all.
    """
    for file, name in zip(files, names_of(files), strict=True):
        yield from _rows_of(file, name)


def read_batches(files: Sequence[Path], start: Position) -> Iterator[tuple[list[SourceRow | Misfit], Position]]:
    """Rows of the files, some thousand together, and where they end.

    Args:
        start: where to begin.

    Raises:
        DataError: a file cannot be read at all.
    """
    batch: list[SourceRow | Misfit] = []
    size = 0
    for number, (file, name) in enumerate(zip(files, names_of(files), strict=True)):
        if number < start[0]:
            continue
        done = start[1] if number == start[0] else 0
        for rows, much in _blocks_of(file, name, done):
            batch += rows
            done += len(rows)
            size += much
            if len(batch) >= TOGETHER or size >= SIZE_TOGETHER:
                yield batch, (number, done)
                batch, size = [], 0
    if batch:
        yield batch, (len(files), 0)


def _blocks_of(file: Path, name: str, skipped: int) -> Iterator[Block]:
    """Rows of a file, but for some first ones."""
    with _readable(file):
        if not is_jsonl(file):
            yield from (([row], _size(row)) for row in islice(_reader(file)(file, name), skipped, None))
            return
        for rows, size in _blocks_of_jsonl(file, name):
            left = rows[skipped:]
            skipped -= len(rows) - len(left)
            if left:
                yield left, size


def _size(row: SourceRow | Misfit) -> int:
    """About how much a row holds."""
    if isinstance(row, Misfit):
        return len(row.content or "")
    return sum([len(value) for value in row.values.values() if type(value) in SIZED])


def _rows_of(file: Path, name: str) -> Iterator[SourceRow | Misfit]:
    with _readable(file):
        yield from _reader(file)(file, name)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """
    Raises:
        DataError: the file cannot be read at all, which is found in the block too.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise DataError(f"{file}: a Git LFS pointer, not the data that it stands for. Fetch it with `git lfs pull`")
        yield
    except (pa.ArrowException, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{file}: cannot be read: {why}") from None


def _reader(file: Path) -> Callable[[Path, str], Iterator[SourceRow | Misfit]]:
    if is_jsonl(file):
        return _of_jsonl
    if file.suffix == ".arrow":
        return _of_arrow
    if file.suffix == ".parquet":
        return _of_parquet
    module = {".eval": "eval_logs", ".json": "eval_logs", ".pt": "torch_dumps"}.get(file.suffix, "sqlite_tables")
    found: Callable[[Path, str], Iterator[SourceRow | Misfit]] = import_module(f"{__package__}.{module}").read
    return found


def first_columns(files: Sequence[Path]) -> set[str]:
    """Columns of the first rows that can be read."""
    columns: set[str] = set()
    rows = (row for row in read_rows(files) if isinstance(row, SourceRow))
    for _, row in zip(range(LOOKED_AT), rows, strict=False):
        columns |= row.values.keys()
    return columns


def _of_jsonl(path: Path, name: str) -> Iterator[SourceRow | Misfit]:
    with open_lines(path) as file:
        for number, line in numbered_lines(file):
            yield _of_line(path, name, number, line)


def _of_line(path: Path, name: str, number: int, line: bytes) -> SourceRow | Misfit:
    try:
        return SourceRow(name, "line", number, json_object(line), path)
    except ValueError as error:
        why = re.sub(r", such as \S+ ?\S*\}", "", str(error))
        return Misfit(f"{name}, line {number}", why, line[:LONGEST_CONTENT].decode("utf-8", "replace"))


def _blocks_of_jsonl(path: Path, name: str) -> Iterator[Block]:
    """Rows of a file of lines, some hundred at once."""
    with open_lines(path) as file:
        lines: list[tuple[int, bytes]] = []
        size = 0
        for numbered in numbered_lines(file):
            lines.append(numbered)
            size += len(numbered[1])
            if len(lines) >= LINES or size >= BYTES:
                yield _block(path, name, lines), size
                lines, size = [], 0
        if lines:
            yield _block(path, name, lines), size


def _block(path: Path, name: str, lines: Sequence[tuple[int, bytes]]) -> list[SourceRow | Misfit]:
    found = flat_objects([line for _, line in lines])
    if found is None:
        return [_of_line(path, name, number, line) for number, line in lines]
    return [SourceRow(name, "line", number, values, path) for (number, _), values in zip(lines, found, strict=True)]


def _of_parquet(path: Path, name: str) -> Iterator[SourceRow]:
    refuse_damaged(path)
    with pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise DataError(f"{path}: column {twice[0]!r} is there twice")
        number = 0
        for group in range(file.num_row_groups):
            if (size := memory.claimed(file.metadata, [group])) > memory.budget():
                raise DataError(
                    f"{path}: row group {group} says that it expands to {readable(size)}, more than the "
                    f"{readable(memory.budget())} that one may take on this machine. Write it with smaller row groups"
                )
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
                for values in _rows_of_batch(batch):
                    yield SourceRow(name, "row", number, values, path)
                    number += 1


def _of_arrow(path: Path, name: str) -> Iterator[SourceRow]:
    """What `save_to_disk` of the datasets library writes."""
    number = 0
    with pa.memory_map(str(path)) as file:
        for whole in pa.ipc.open_stream(file):
            for start in range(0, len(whole), BATCH_ROWS):
                for values in _rows_of_batch(whole.slice(start, BATCH_ROWS)):
                    yield SourceRow(name, "row", number, values, path)
                    number += 1


def _rows_of_batch(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A table gives each object in a column the names of all of them. Of a tool call's arguments those that are null are no
    arguments."""
    batch.validate(full=True)
    rows: list[dict[str, Any]] = batch.to_pylist()
    for column in [field.name for field in batch.schema if _has_arguments(field.type)]:
        for row in rows:
            row[column] = _without_empty(row[column], inside=False)
    return rows


def _has_arguments(kind: pa.DataType) -> bool:
    """Whether there are objects called `arguments` somewhere in a column."""
    if pa.types.is_struct(kind):
        inner = [kind.field(place) for place in range(kind.num_fields)]
        return any((field.name == ARGUMENTS and pa.types.is_struct(field.type)) or _has_arguments(field.type) for field in inner)
    return hasattr(kind, "value_type") and _has_arguments(kind.value_type)


def _without_empty(value: Any, *, inside: bool) -> Any:
    """The value without nulls in objects that are called `arguments`, or lie in one."""
    if isinstance(value, list):
        return [_without_empty(item, inside=inside) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if not (inside and item is None)}
    return {name: _without_empty(item, inside=inside or name == ARGUMENTS) for name, item in kept.items()}


def _natural(path: Path) -> list[str | int]:
    """Numbers in a name count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _tail(file: Path, depth: int) -> str:
    return "/".join(file.resolve().parts[-depth:])
