"""Reading tables of finished artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import memory
from pipeline.common.errors import DataError, IntegrityError
from pipeline.store.artifact import Artifact
from pipeline.store.space import readable
from schemas.table import Table


def scan_table(artifact: Artifact, table: type[Table]) -> pl.LazyFrame:
    """A lazy frame over all files of a table, after checking each file's size and columns (not its bytes).

    Raises:
        IntegrityError: a file is missing, has another size than the manifest says, or is of an unknown version.
        DataError: columns are missing or of another type.
    """
    files = [file for file in artifact.files if file.table]
    paths = []
    for file in files:
        name, _, version = (file.table or "").partition("/")
        if name != table.title():
            continue
        path = artifact.place.have(file)
        if version != str(table.version):
            raise IntegrityError(f"{path}: table {name} version {version}; this version of rollbook reads {table.version}")
        if not path.is_file() or path.stat().st_size != file.bytes:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            raise IntegrityError(f"{path}: {found}, the manifest says {file.bytes} bytes. Restore it or make the artifact anew.")
        check_columns(path, table)
        paths.append(path)
    if not paths:
        raise DataError(f"{artifact.url}: this {artifact.kind} artifact has no {table.title()} table")
    return pl.scan_parquet(paths, glob=False)


def read_table(artifact: Artifact, table: type[Table], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """All rows of a table, or some columns of it."""
    frame = scan_table(artifact, table)
    return (frame.select(columns) if columns else frame).collect()


def check_columns(path: Path, table: type[Table]) -> None:
    """Compare a Parquet file's columns with a table's.

    Raises:
        DataError: names the file and every column that differs, or the row group that would not fit into memory.
    """
    try:
        metadata = pq.read_metadata(path)
        found = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None
    if problems := table.differences(found):
        raise DataError(f"{path}: " + "; ".join(problems))
    for group in range(metadata.num_row_groups):
        if (size := memory.claimed(metadata, [group])) > memory.budget():
            raise DataError(
                f"{path}: row group {group} says that it expands to {readable(size)}, more than the {readable(memory.budget())} "
                "that one may take on this machine. If you trust the file, read it on a larger one"
            )
