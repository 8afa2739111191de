"""Tables on disk: encodings by type, row groups by size, and more than 32-bit offsets reach."""

import ast
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import DataError
from pipeline.store.parquet import write_parquet
from pipeline.store.tables import check_columns
from pipeline.store.work import write_table
from schemas import Rollouts, Scores
from schemas.example import example
from schemas.table import Table, column

MIB = 1 << 20


class Notes(Table):
    """A text a row."""

    text = column(dy.String, "Any text.")


class Masks(Table):
    """A list a row."""

    mask = column(dy.List, "Any list.", dy.Bool())


def scores(rows: int, tokens: int) -> pl.DataFrame:
    """Rows whose logprobs are all different."""
    types: dict[str, Any] = {name: column.dtype for name, column in Scores.columns().items()}
    lists = [[-(row * tokens + i) / 1024 for i in range(tokens)] for row in range(rows)]
    return pl.DataFrame({"group_id": "g", "sample_index": range(rows), "logprobs": lists}, schema=types)


def limit(patch: pytest.MonkeyPatch, *, bytes: int = 256 * MIB, offsets: int = 2**31 - 1) -> None:
    """Row groups of so many bytes, and 32-bit offsets that reach so far."""
    patch.setattr("pipeline.store.parquet.BYTES", bytes)
    patch.setattr("pipeline.store.parquet.LARGEST_32_BIT", offsets)
    patch.setattr("schemas.table.LARGEST_32_BIT", offsets)


def test_tokens_and_logprobs_are_stored_without_a_dictionary_and_other_columns_with_one(tmp_path: Path) -> None:
    types: dict[str, Any] = {name: column.dtype for name, column in Rollouts.columns().items()}
    row = ast.literal_eval(example(Rollouts))
    frame = pl.DataFrame([{**dict.fromkeys(types), **row}], schema=types | {"reward_regex": pl.Float64})
    write_table(tmp_path / "part.parquet", frame, Rollouts)
    group = pq.read_metadata(tmp_path / "part.parquet").row_group(0)
    encodings = {group.column(i).path_in_schema: set(group.column(i).encodings) for i in range(group.num_columns)}
    ids = {f"{name}.list.element" for name in ("prompt_token_ids", "completion_token_ids")}
    assert {name for name, found in encodings.items() if found == {"RLE", "BYTE_STREAM_SPLIT"}} == {
        "behavior_logprobs.list.element"
    }
    assert all(encodings[name] == {"RLE", "PLAIN"} for name in ids)
    assert all("RLE_DICTIONARY" in found for name, found in encodings.items() if ".list." not in name)
    assert pl.read_parquet(tmp_path / "part.parquet").equals(frame)


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part.parquet", scores(0, 0), Scores)
    assert pl.read_parquet(tmp_path / "part.parquet").equals(scores(0, 0))


def test_a_row_group_ends_before_it_grows_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, bytes=1000)  # a row has a letter and 50 floats of 8 bytes with their levels: 401 bytes
    frame = scores(11, 50)
    write_table(tmp_path / "part.parquet", frame, Scores)
    metadata = pq.read_metadata(tmp_path / "part.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 2, 2, 2, 2, 1]
    assert pl.read_parquet(tmp_path / "part.parquet").equals(frame)


def test_a_row_larger_than_a_row_group_has_one_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, bytes=10)
    frame = scores(3, 50)
    write_table(tmp_path / "part.parquet", frame, Scores)
    assert pq.read_metadata(tmp_path / "part.parquet").num_row_groups == 3
    assert pl.read_parquet(tmp_path / "part.parquet").equals(frame)


def test_what_32_bit_offsets_do_not_reach_has_64_bit_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = scores(10, 50)
    write_table(tmp_path / "small.parquet", frame, Scores)
    limit(monkeypatch, bytes=1000, offsets=499)
    write_table(tmp_path / "large.parquet", frame, Scores)
    small, large = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("small", "large"))
    assert small.schema.types == [pa.string(), pa.int32(), pa.list_(pa.float32())]
    assert large.schema.types == [pa.string(), pa.int32(), pa.large_list(pa.float32())]
    assert small.to_pylist() == large.to_pylist()
    check_columns(tmp_path / "large.parquet", Scores)
    assert large.schema.metadata == small.schema.metadata


def test_a_value_that_no_page_holds_is_refused_by_row_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, offsets=7)
    with pytest.raises(DataError, match=r"part.parquet, row 1: text has 8 bytes of text; a Parquet file holds at most 7"):
        write_table(tmp_path / "part.parquet", pl.DataFrame({"text": ["ööö", "öööö"]}), Notes)
    with pytest.raises(DataError, match=r"part.parquet, row 0: mask has 8 values in a list; a Parquet file holds at most 7"):
        write_table(tmp_path / "part.parquet", pl.DataFrame({"mask": [[True] * 8]}), Masks)
    assert list(tmp_path.iterdir()) == []


def test_more_than_two_gib_of_text_are_one_table(tmp_path: Path) -> None:
    text = "".join(chr(97 + i % 26) for i in range(MIB))
    frame = pl.DataFrame({"text": pl.Series([text]).gather([0] * 2100)})  # one buffer, 2,100 views of it
    write_table(tmp_path / "part.parquet", frame, Notes)
    assert pq.read_schema(tmp_path / "part.parquet").types == [pa.large_string()]
    check_columns(tmp_path / "part.parquet", Notes)
    found = pl.scan_parquet(tmp_path / "part.parquet").select((pl.col("text") == text).sum()).collect(engine="streaming")
    assert found.item() == 2100


@pytest.mark.long
def test_more_than_2_to_31_list_elements_are_one_table(tmp_path: Path) -> None:
    mask = pl.Series([True, False] * (MIB // 2), dtype=pl.Boolean)
    frame = pl.DataFrame({"mask": pl.Series([mask]).gather([0] * 2050)})
    write_parquet(tmp_path / "part.parquet", frame, Masks)
    assert pq.read_schema(tmp_path / "part.parquet").types == [pa.large_list(pa.bool_())]
    check_columns(tmp_path / "part.parquet", Masks)
    with pq.ParquetFile(tmp_path / "part.parquet") as file:
        batches = [batch.column("mask") for batch in file.iter_batches(64)]
    assert sum(len(batch) for batch in batches) == 2050
    assert all(batch.flatten().true_count == len(batch) * MIB // 2 for batch in batches)
