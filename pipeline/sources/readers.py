"""Rows of a prompts source: JSONL, Parquet or a Hugging Face dataset, read as what strangers wrote.

A row that cannot be read is kept beside the others with its place and the reason. Nothing in a file can run code, and what
it claims to expand to is looked at before it is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from pipeline.common import memory
from pipeline.common.errors import DataError, UserError
from pipeline.common.footers import refuse_damaged
from pipeline.common.near import did_you_mean
from pipeline.config.data import QuestionSet
from pipeline.sources.hub import hub_answers
from pipeline.store.space import readable

FILE_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst", ".zip")
"""What ends like this is a file and not the name of a hub dataset."""
LONGEST = 16 << 20
"""Bytes of a JSONL line, and of a row of Parquet."""
NOT_FLAT = (b" :", b"\t:", b"\r:", b"\n:", b"\\ud", b"\\uD")
"""Where one of these stands in a line, it is not read as a flat object: a name may be apart from its colon, or a text half a pair
of surrogates."""
DEEPEST = 64
"""Lists and objects inside one another in a row."""
BATCH_ROWS = 1024
PACKED = (".gz", ".zst", ".bz2")
"""Endings of files of lines that are packed as a whole."""
JSONL = (".jsonl", ".ndjson")
LFS = b"version https://git-lfs.github.com/spec/"


class BadRow(NamedTuple):
    """A row that does not fit."""

    number: int
    reasons: str
    content: str | None
    """The row as text, or its beginning."""


@dataclass
class SourceRows:
    """A source's rows as they came. A row may lack columns that others have."""

    unit: Literal["line", "row"]
    """Lines of JSONL are counted from 1, as editors do, rows of a table from 0."""
    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of the rows."""
    bad: list[BadRow] = field(default_factory=list)


def refuse_missing(source: QuestionSet) -> None:
    """
    Raises:
        UserError: the path is no hub name, and there is nothing there.
    """
    path = Path(source.path)
    local = path.suffix in FILE_SUFFIXES or path.is_absolute() or source.path.startswith((".", "~")) or len(path.parts) > 2
    if local and not path.exists():
        raise UserError(f"{source.path}: no such file or directory{did_you_mean(source.path)}")


def read_rows(source: QuestionSet) -> SourceRows:
    """Rows of a source: the first `limit`, or all where a condition or the lot chooses among them.

    Raises:
        UserError: there is nothing at that place.
        DataError: it is not what its name says, or would not fit into memory.
    """
    path = Path(source.path)
    refuse_missing(source)
    if path.is_file() and not is_jsonl(path) and path.suffix != ".parquet":
        raise DataError(f"{path}: unknown kind of file; prompts are read from .jsonl, .parquet or a Hugging Face dataset")
    try:
        if not path.is_file():
            return _of_dataset(source)
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise DataError(f"{path}: a Git LFS pointer, not the data that it stands for. Fetch it with `git lfs pull`")
        return _of_jsonl(path, _first(source)) if path.suffix != ".parquet" else _of_parquet(path, _first(source))
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from None


def _first(source: QuestionSet) -> int | None:
    return source.limit if source.where is None and source.lot is None else None


class _Room:
    """Counts what is held, against what may be."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._left = memory.budget()

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            self.refuse("holds more than")

    def check(self, size: int) -> None:
        """Refuse what is only claimed yet."""
        if size > self._left:
            self.refuse(f"says that it expands to {readable(size)}, more than")

    def refuse(self, what: str) -> None:
        raise DataError(
            f"{self._path}: {what} the {readable(memory.budget())} that prompts may take on this machine. "
            "Cut it into smaller files, or set `limit` to use its first rows"
        )


def _of_jsonl(path: Path, limit: int | None) -> SourceRows:
    """Not through a data frame: it would make one type of a column's 1 and 1.5, or 1 and "one"."""
    found, room = SourceRows("line"), _Room(path)
    with open_lines(path) as file:
        for number, line in numbered_lines(file):
            if limit is not None and len(found.rows) + len(found.bad) >= limit:
                break
            room.take(len(line) + memory.BYTES_PER_ROW * (1 + sum(line.count(mark) for mark in (b",", b"[", b"{")) // 4))
            try:
                found.rows.append(json_object(line))
                found.numbers.append(number)
            except ValueError as error:
                found.bad.append(BadRow(number, str(error), line.decode("utf-8", "replace")))
    found.columns = list(dict.fromkeys(key for row in found.rows for key in row))
    return found


def is_jsonl(path: Path) -> bool:
    """Whether a file has a JSON object a line, perhaps packed as a whole.

    >>> is_jsonl(Path("a.jsonl")), is_jsonl(Path("a.jsonl.zst")), is_jsonl(Path("a.json.gz")), is_jsonl(Path("a.json"))
    (True, True, True, False)
    """
    name = path.with_suffix("") if path.suffix in PACKED else path
    return name.suffix in JSONL or (name != path and name.suffix == ".json")


def open_lines(path: Path) -> Any:
    """A file of lines, unpacked as it is read."""
    if path.suffix not in PACKED:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=path.suffix[1:].replace("zst", "zstd").replace("gz", "gzip")))


def numbered_lines(file: Any) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. Of one that is too long only the beginning is held."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(LONGEST)):
            pass
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def json_object(line: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: says why it is not a JSON object.
    """
    if len(line) > LONGEST:
        raise ValueError(f"longer than {readable(LONGEST)}")
    if (simple := _flat_object(line)) is not None:
        return simple
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("not valid JSON: too many lists or objects inside one another") from None
    except _TwiceError:
        raise
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(value, dict):
        raise ValueError(f'expected an object such as {{"question": ...}}, found {type(value).__name__}')
    if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(value) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} lists or objects inside one another")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is valid in JSON, but is not text
        except UnicodeEncodeError as error:
            raise ValueError(f"not text: {error.reason}") from None
    return value


class _TwiceError(ValueError):
    """An object names something twice. Python would keep the last of them and say nothing."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(f"{next(name for place, name in enumerate(names) if name in names[:place])!r} is there twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _flat_object(line: bytes) -> dict[str, Any] | None:
    """A line's object by a faster reader, which would keep the last of names that are there twice and say nothing.

    None where the line might be something else than an object without objects in it, whose names are all different: with as many
    `":` as names, and no space before a colon, each of these marks follows a name. What is wrong, the other reader says.
    """
    if line.count(b"{") != 1 or line.count(b"[") > DEEPEST or any(mark in line for mark in NOT_FLAT):
        return None
    try:
        value = from_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and line.count(b'":') == len(value) else None


def flat_objects(lines: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """The objects of some lines, read at once; None where one of them may be something else than `_flat_object` takes.

    Each line begins with the only brace in it that opens an object, and none opens a list, so none can go on in the next. With as
    many `":` as names in all, no object has a name twice, for none can have more names than marks.
    """
    whole = b",".join(lines)
    if len(whole) > LONGEST or b"[" in whole or whole.count(b"{") != len(lines) or any(mark in whole for mark in NOT_FLAT):
        return None
    if not all(map(bytes.startswith, lines, repeat(b"{"))):
        return None
    try:
        values = from_json(b"[" + whole + b"]")
    except ValueError:
        return None
    fits = len(values) == len(lines) and set(map(type, values)) == {dict} and sum(map(len, values)) == whole.count(b'":')
    return values if fits else None


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        inside = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
    return deepest


def _of_parquet(path: Path, limit: int | None) -> SourceRows:
    """Texts stay in their dictionaries until it is known what they come to once they are written out."""
    room = _Room(path)
    refuse_damaged(path)
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        names = [field.name for field in file.schema_arrow]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: column {twice[0]!r} is there twice")
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    wanted, groups = limit or metadata.num_rows, 0
    while groups < metadata.num_row_groups and wanted > 0:
        wanted -= metadata.row_group(groups).num_rows
        groups += 1
    room.check(memory.claimed(metadata, range(groups)))
    room.check(min(limit or metadata.num_rows, metadata.num_rows) * memory.BYTES_PER_ROW)
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        batches = file.iter_batches(BATCH_ROWS, row_groups=list(range(groups)), use_threads=False)
        return _of_batches(names, batches, limit, room)


def _of_batches(names: list[str], batches: Iterable[pa.RecordBatch], limit: int | None, room: _Room) -> SourceRows:
    found = SourceRows("row", names)
    for batch in batches:
        batch = batch.slice(0, None if limit is None else limit - len(found.rows))
        batch.validate(full=True)  # text that is not UTF-8, offsets that lead elsewhere
        room.take(sum(memory.decoded(column) for column in batch.columns) + len(batch) * memory.BYTES_PER_ROW)
        found.numbers += range(len(found.rows), len(found.rows) + len(batch))
        found.rows += pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).to_dicts()
        if limit is not None and len(found.rows) >= limit:
            break
    return found


def _of_dataset(source: QuestionSet) -> SourceRows:
    table = _load_dataset(source)
    return _of_batches(table.column_names, table.to_batches(BATCH_ROWS), _first(source), _Room(source.path))


def _load_dataset(source: QuestionSet) -> pa.Table:
    import datasets

    datasets.disable_progress_bars()
    path = Path(source.path)
    saved = [path / name for name in ("dataset_info.json", "dataset_dict.json") if (path / name).exists()]
    try:
        if saved:
            _refuse_files_elsewhere(path)
            dataset = datasets.load_from_disk(source.path)
        else:
            with hub_answers(unless=path.exists()):
                dataset = datasets.load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        absent = "" if path.exists() else "no such file or directory, and "
        raise DataError(f"{source.path}: {absent}cannot be loaded as a Hugging Face dataset: {line}") from None
    if isinstance(dataset, dict):
        if source.split not in dataset:
            raise DataError(f"{source.path}: has the splits {', '.join(dataset)}; name one in data.*.split")
        dataset = dataset[source.split]
    return dataset.with_format("arrow")[: _first(source)]


def _refuse_files_elsewhere(directory: Path) -> None:
    """A saved dataset lists its files; they must lie in it."""
    for state in directory.rglob("state.json"):
        listed = json.loads(state.read_text(encoding="utf-8")).get("_data_files") or []
        for entry in listed:
            place = (state.parent / entry["filename"]).resolve()
            if not place.is_relative_to(directory.resolve()):
                raise DataError(f"{state.name} lists {entry['filename']!r}, which lies outside the dataset")
