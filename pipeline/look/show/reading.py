"""Reading tables that may be anybody's: whatever is wrong with one is an answer."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.errors import DataError
from pipeline.store import Artifact


def read(rows: pl.LazyFrame, artifact: Artifact) -> pl.DataFrame:
    """Collect rows of an artifact's table.

    Raises:
        DataError: the library cannot read it, or stumbles over it.
    """
    try:
        return rows.collect(engine="streaming")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(artifact, error) from None


def head(artifact: Artifact, table: str, rows: int) -> tuple[pl.DataFrame, int]:
    """The first rows of any table, whatever its columns, and how many there are.

    Raises:
        DataError: it cannot be read.
    """
    parts, there, left = [], 0, rows
    for path in artifact.tables(table):
        try:
            with pq.ParquetFile(path) as file:
                there += file.metadata.num_rows
                for batch in file.iter_batches(max(left, 1)) if left > 0 else ():
                    batch = batch.slice(0, left)
                    parts.append(pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))))
                    left -= len(batch)
                    if left <= 0:
                        break
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError) as error:
            raise _unreadable(artifact, error) from None
    return (pl.concat(parts, how="diagonal_relaxed") if parts else pl.DataFrame()), there


def _unreadable(artifact: Artifact, error: BaseException) -> DataError:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{artifact.url}: a table cannot be read: {line}. `rollbook audit {artifact.url}` looks at every file of it")
