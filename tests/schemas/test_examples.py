"""The row in each table's docstring is one that the table takes, and the manifest's example one that the store would write."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import schemas
from schemas import TABLES, Rollouts, Table
from schemas.example import description, example, meanings
from schemas.manifest import Content, File, Manifest, Parent, Provenance, seal_holds


def all_tables() -> list[type[Table]]:
    """Every table that a module of `schemas` defines."""
    for module in pkgutil.iter_modules(schemas.__path__, "schemas."):
        importlib.import_module(module.name)
    return [table for table in Table.__subclasses__() if table.__module__.startswith("schemas.")]


def row_of(table: type[Table]) -> dict[str, Any]:
    row: dict[str, Any] = ast.literal_eval(example(table))
    return row


def test_every_table_is_listed() -> None:
    assert set(all_tables()) == set(TABLES.values())


@pytest.mark.parametrize("table", all_tables(), ids=Table.title.__func__)  # type: ignore[attr-defined]
def test_a_tables_example_has_every_column_and_fits(table: type[Table]) -> None:
    row = row_of(table)
    declared = list(table.columns())
    assert list(row)[: len(declared)] == declared
    assert all(table.is_extra(name) for name in list(row)[len(declared) :])
    types: dict[str, Any] = {name: column.dtype for name, column in table.columns().items()}
    frame = pl.DataFrame([row], schema=types | dict.fromkeys(list(row)[len(declared) :], pl.Float64))
    checked = table.check(frame)
    assert checked.bad["reasons"].to_list() == []
    assert checked.good.height == 1
    assert table.to_arrow(frame).num_rows == 1


@pytest.mark.parametrize("table", all_tables(), ids=Table.title.__func__)  # type: ignore[attr-defined]
def test_a_tables_description_says_more_than_its_name(table: type[Table]) -> None:
    text = description(table)
    assert text.endswith(".")
    assert "Example" not in text


def test_the_example_of_the_rollouts_is_what_the_demos_tokenizer_reads() -> None:
    from tokenizers import Tokenizer

    row = row_of(Rollouts)
    tokenizer = Tokenizer.from_file(str(Path(__file__).parents[2] / "data" / "base" / "tokenizer.json"))
    assert tokenizer.encode(row["prompt_text"], add_special_tokens=False).ids == row["prompt_token_ids"]
    assert tokenizer.decode(row["completion_token_ids"], skip_special_tokens=True) == row["completion_text"]


def test_the_example_of_the_manifest_is_whole() -> None:
    text = example(Manifest) + "\n"
    manifest = Manifest.model_validate_json(text)
    assert manifest.expected_id() == manifest.id
    assert seal_holds(text, manifest.seal)
    assert manifest.model_dump_json(indent=2) + "\n" == text


@pytest.mark.parametrize("model", [Manifest, Content, Parent, File, Provenance])
def test_every_part_of_the_manifest_says_what_it_is(model: Any) -> None:
    assert description(model).endswith(".")
    said = meanings(model)
    assert all(said.get(name, "").endswith(".") or name == "format" for name in model.model_fields)


def test_a_class_without_an_example_is_told() -> None:
    with pytest.raises(ValueError, match=r"^File has no example; end its docstring with 'Example:' and one row$"):
        example(File)
