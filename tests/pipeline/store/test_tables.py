"""Tables are read by the names of their files, whatever characters those are made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.store import Artifact, Request, Store, Work, read_table
from schemas import Shaped

CODE = Path(__file__).parents[3]
READERS = {f"{verb}_{kind}" for verb in ("read", "scan") for kind in ("parquet", "ipc", "csv", "ndjson")}


def shaped(root: Path, group: str) -> Artifact:
    types = {name: column.dtype for name, column in Shaped.columns().items()}
    with Store(root).work(Request("shaped", "shape/1", {})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame([(group, 0, 0.5, 1.0, True, None)], types, orient="row"), Shaped)
        return work.finish({})


@pytest.mark.parametrize(("name", "twin"), [("runs[1]", "runs1"), ("run*", "run-a"), ("run?", "run1"), ("a[", "a")])
def test_a_store_is_read_and_not_the_one_that_its_name_would_match(tmp_path: Path, name: str, twin: str) -> None:
    made = {group: shaped(tmp_path / group, group) for group in (twin, name)}
    assert {group: read_table(artifact, Shaped)["group_id"].to_list() for group, artifact in made.items()} == {
        twin: [twin],
        name: [name],
    }


def bare_reads(file: Path) -> Iterator[str]:
    """Calls that would take a name for a pattern."""
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in READERS:
            says_so = any(word.arg == "glob" and ast.unparse(word.value) == "False" for word in call.keywords)
            says_so |= "read_bytes()" in ast.unparse(call.args[0])
            if ast.unparse(call.func.value) == "pl" and not says_so:
                yield f"{file.relative_to(CODE)}:{call.lineno}"


def test_no_name_of_a_file_is_taken_for_a_pattern() -> None:
    files = [file for folder in ("pipeline", "flows", "schemas") for file in sorted((CODE / folder).rglob("*.py"))]
    assert [place for file in files for place in bare_reads(file)] == []
