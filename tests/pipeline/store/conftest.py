"""Processes that work on a store."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from pipeline.store import Store

PRELUDE = """
    import sys, time
    from pathlib import Path
    import polars as pl
    from pipeline.store import Request, Store, Work
    from pipeline.store.files import whole_file
    from schemas import Shaped

    def rows(name, count=2000):
        types = {name: column.dtype for name, column in Shaped.columns().items()}
        return pl.DataFrame([(name, i, 0.5, 1.0, True, None) for i in range(count)], schema=types, orient="row")

    def say(*words):
        print(*words, flush=True)

    store = Store(sys.argv[1])
    request = Request("shaped", "test/1", {})
"""


@pytest.fixture
def start(store: Store) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(source, root): a process that runs the source with `store` (at root) and `request` at hand."""
    running: list[subprocess.Popen[str]] = []

    def run(source: str, root: object = store.root) -> subprocess.Popen[str]:
        program = textwrap.dedent(PRELUDE) + textwrap.dedent(source)
        command = [sys.executable, "-c", program, str(root)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()
