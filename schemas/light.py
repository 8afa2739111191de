"""dataframely without SQLAlchemy, whose types for SQL nothing here asks for: a third of a second of every command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

SQL = "sqlalchemy"


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Have imports of a module fail within the block, as if it were not installed; one that is there already stays."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with without(SQL):
    import dataframely as dataframely
