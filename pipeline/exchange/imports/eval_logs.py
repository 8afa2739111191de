"""Samples of inspect-ai's logs: the JSON that `inspect log dump` prints, or an .eval archive, a zip whose members zstd packed.
Another .json file is read where it is one list of rows.

Python's zipfile knows that packing from version 3.14 on, so members are unpacked here, one after the other.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.common import memory
from pipeline.common.errors import DataError
from pipeline.exchange.imports.known import Misfit, SourceRow
from pipeline.sources.readers import json_object
from pipeline.store.space import readable

ZSTD = 93
LOCAL_HEADER = 30
"""Bytes of a member's header before its name."""
FOLDER = "samples/"
NO_LOG = "expected a list of rows, or what `inspect log dump` prints: an object with eval and samples"


def read(path: Path, name: str) -> Iterator[SourceRow | Misfit]:
    """Every sample of a log; its column `_log` is what the log says of all of them.

    Raises:
        DataError: it is no log, or would not fit into memory.
    """
    yield from _of_archive(path, name) if path.suffix == ".eval" else _of_dump(path, name)


def _of_dump(path: Path, name: str) -> Iterator[SourceRow]:
    _refuse_large(path, "it", path.stat().st_size)
    try:
        log = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}. Files of one JSON object a line end in .jsonl") from None
    if isinstance(log, list) and all(isinstance(row, dict) for row in log):
        yield from (SourceRow(name, "row", number, row, path) for number, row in enumerate(log))
        return
    if not (isinstance(log, dict) and isinstance(log.get("samples"), list) and isinstance(log.get("eval"), dict)):
        raise DataError(f"{path}: {NO_LOG}. Files of one JSON object a line end in .jsonl")
    of_all = {key: value for key, value in log.items() if key != "samples"}
    for number, sample in enumerate(log["samples"]):
        if not isinstance(sample, dict):
            raise DataError(f"{path}: sample {number} is no object")
        yield SourceRow(name, "sample", number, {**sample, "_log": of_all}, path)


def _of_archive(path: Path, name: str) -> Iterator[SourceRow | Misfit]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    by_name = {member.filename: member for member in members}
    header = next((by_name[place] for place in ("header.json", "_journal/start.json") if place in by_name), None)
    if header is None:
        raise DataError(f"{path}: no log of inspect-ai: the archive has neither header.json nor _journal/start.json")
    of_all = _object(path, header)
    samples = [member for member in members if member.filename.startswith(FOLDER) and member.filename.endswith(".json")]
    for number, member in enumerate(samples):
        try:
            yield SourceRow(name, "sample", number, {**_object(path, member), "_log": of_all}, path)
        except ValueError as error:
            yield Misfit(f"{name}, sample {number}", f"{member.filename}: {error}", None)


def _object(path: Path, member: zipfile.ZipInfo) -> dict[str, Any]:
    _refuse_large(path, member.filename, member.file_size)
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(LOCAL_HEADER)
        if head[:4] != b"PK\x03\x04":
            raise DataError(f"{path}: cannot be read: {member.filename} is not where the archive says")
        file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        packed = file.read(member.compress_size)
    if member.compress_type == ZSTD:
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            return json_object(stream.read(member.file_size + 1))
    with zipfile.ZipFile(path) as archive:
        return json_object(archive.read(member))


def _refuse_large(path: Path, what: str, size: int) -> None:
    if size > memory.budget() // 8:  # a text of JSON takes several times its size once it is objects
        raise DataError(f"{path}: {what} has {readable(size)}, more than this machine holds as objects. Cut it into smaller logs")
