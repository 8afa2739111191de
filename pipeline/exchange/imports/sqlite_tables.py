"""Rows of a SQLite file, opened for reading only. Trinity-RFT keeps a table of what is known of each experience and one
of their bytes; the two are joined.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import DataError
from pipeline.exchange.imports.known import SourceRow

BYTES = "experience_bytes"
BLOB = "_blob"


def read(path: Path, name: str) -> Iterator[SourceRow]:
    """Every row of every table that has rewards; its column `_table` is the table's name.

    Raises:
        DataError: it is no SQLite file, or has no such table.
    """
    try:
        opened = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    try:
        opened.row_factory = sqlite3.Row
        yield from _rows(opened, path, name)
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    finally:
        opened.close()


def _rows(opened: sqlite3.Connection, path: Path, name: str) -> Iterator[SourceRow]:
    tables = [row[0] for row in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    with_reward = [table for table in tables if "reward" in _columns(opened, table)]
    if not with_reward:
        raise DataError(f"{path}: no table with a column reward; it has {', '.join(tables) or 'no tables'}")
    number = 0
    for table in with_reward:
        quoted = _quoted(table)
        beside = f"{table}{BLOB}" in tables and BYTES not in _columns(opened, table)
        query = f"SELECT * FROM {quoted} ORDER BY id"
        if beside:
            query = f"SELECT a.*, b.{BYTES} FROM {quoted} a LEFT JOIN {_quoted(table + BLOB)} b ON a.id = b.id ORDER BY a.id"
        for row in opened.execute(query):
            yield SourceRow(name, "row", number, {**dict(row), "_table": table}, path)
            number += 1


def _columns(opened: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in opened.execute(f"PRAGMA table_info({_quoted(table)})")]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
