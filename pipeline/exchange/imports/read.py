"""Rows of source files, one after the other: what a file holds is never in memory as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from importlib import import_module
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import memory
from pipeline.common.errors import DataError, UserError
from pipeline.common.footers import refuse_damaged
from pipeline.common.near import did_you_mean
from pipeline.exchange.imports.format import LONGEST_CONTENT
from pipeline.exchange.imports.known import Misfit, Position, SourceRow
from pipeline.sources.readers import BATCH_ROWS, LFS, json_object, numbered_lines
from pipeline.store.space import readable

JSONL = (".jsonl", ".ndjson")
FOLDER_SUFFIXES = (*JSONL, ".parquet", ".eval", ".pt", ".db", ".sqlite")
"""Of files that are read from a directory. A .json is read where it is named: most of them describe others."""
SUFFIXES = (*FOLDER_SUFFIXES, ".json")
DATA = "data"
"""Where the files of a Hugging Face data set lie."""
EXPORT = "rollbook-export.json"
"""The record of `rollbook export`."""
BESIDE = ("origins", "remarks", "turns")
"""Tables of an export that are no completions, by the beginnings of their files' names."""
TOGETHER, SIZE_TOGETHER = 4096, 16 << 20
"""Rows of a batch, and characters of their texts, about."""
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
        elif path.suffix not in SUFFIXES:
            raise UserError(f"{path}: unknown kind of file; completions are read from {', '.join(SUFFIXES)}")
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
    found = [file for file in path.iterdir() if file.suffix in FOLDER_SUFFIXES and file.is_file()]
    wanted = [file for file in found if not any(fnmatch(file.name, pattern) for pattern in not_rows)]
    if not found and (path / DATA).is_dir():
        beside = BESIDE if (path / EXPORT).is_file() else ()
        wanted = [file for file in _in_directory(path / DATA, not_rows) if file.name.partition("-")[0] not in beside]
    if not wanted:
        only = f", only {found[0].name}, which holds no completions" if found else ""
        model = ". It is a model: name it with --model, or as model.path of a run" * (path / "config.json").is_file()
        raise UserError(f"{path}: no {', '.join(FOLDER_SUFFIXES)} file in this directory{only}{model}")
    return wanted


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
        for row in islice(_rows_of(file, name), done, None):
            batch.append(row)
            done, size = done + 1, size + _size(row)
            if len(batch) >= TOGETHER or size >= SIZE_TOGETHER:
                yield batch, (number, done)
                batch, size = [], 0
    if batch:
        yield batch, (len(files), 0)


def _size(row: SourceRow | Misfit) -> int:
    """About how much a row holds."""
    if isinstance(row, Misfit):
        return len(row.content or "")
    return sum(len(value) for value in row.values.values() if isinstance(value, str | list | dict))


def _rows_of(file: Path, name: str) -> Iterator[SourceRow | Misfit]:
    try:
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise DataError(f"{file}: a Git LFS pointer, not the data that it stands for. Fetch it with `git lfs pull`")
        yield from _reader(file)(file, name)
    except (pa.ArrowException, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{file}: cannot be read: {why}") from None


def _reader(file: Path) -> Callable[[Path, str], Iterator[SourceRow | Misfit]]:
    if file.suffix in JSONL:
        return _of_jsonl
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
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            try:
                yield SourceRow(name, "line", number, json_object(line), path)
            except ValueError as error:
                why = re.sub(r", such as \S+ ?\S*\}", "", str(error))
                yield Misfit(f"{name}, line {number}", why, line[:LONGEST_CONTENT].decode("utf-8", "replace"))


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
                batch.validate(full=True)
                for values in batch.to_pylist():
                    yield SourceRow(name, "row", number, values, path)
                    number += 1


def _natural(path: Path) -> list[str | int]:
    """Numbers in a name count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _tail(file: Path, depth: int) -> str:
    return "/".join(file.resolve().parts[-depth:])
