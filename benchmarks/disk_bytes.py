"""Bytes a token on disk, by encoding, and what reading costs: stored rollouts written again in several ways.

    python benchmarks/disk_bytes.py runs/mine/artifacts/rollouts/77d0...

Each list column is written alone with pyarrow's defaults (a dictionary), plain, split by bytes and, for integers, as packed
differences, all compressed with zstd's default, and in a table as rollbook writes it. Then whole tables are written with
pyarrow's defaults and as rollbook writes them, and read
in turn by every reader that is installed. Figures of reading are CPU seconds of this process, all its threads, and the median
ratio of the rounds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.parquet import write_parquet
from schemas import Rollouts

COLUMNS = ("prompt_token_ids", "completion_token_ids", "behavior_logprobs")
WRITINGS = {"dictionary": None, "plain": "PLAIN", "split by bytes": "BYTE_STREAM_SPLIT", "differences": "DELTA_BINARY_PACKED"}
LEAST_TOKENS = 2_000_000
"""Of the table that is read: the rollouts are repeated until there are as many, each time with logprobs of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path, help="a rollouts artifact")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/disk_bytes.json"))
    args = parser.parse_args()
    paths = sorted(args.rollouts.glob("part-*.parquet"))
    frames = [pl.read_parquet(path, glob=False) for path in paths]
    with tempfile.TemporaryDirectory() as place:
        columns = {name: by_writing(frames, name, Path(place)) for name in COLUMNS}
        files = {"dictionary": 0, "rollbook": 0}
        for frame in frames:
            default, ours = both(frame, Path(place))
            files = {
                "dictionary": files["dictionary"] + default.stat().st_size,
                "rollbook": files["rollbook"] + ours.stat().st_size,
            }
        reading = by_reader(pl.concat(frames), Path(place), args.rounds)
    tokens = sum(int(frame["completion_token_ids"].list.len().cast(pl.Int64).sum()) for frame in frames)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python benchmarks/disk_bytes.py ROLLOUTS",
        "versions": {name: importlib.metadata.version(name) for name in ("pyarrow", "polars")},
        "completions": sum(map(len, frames)),
        "completion_tokens": tokens,
        "files": len(frames),
        "bytes_per_value": columns,
        "file_bytes_per_completion_token": {name: round(size / tokens, 3) for name, size in files.items()},
        "reading": reading,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    show(record)


def by_writing(frames: list[pl.DataFrame], name: str, place: Path) -> dict[str, float]:
    """Bytes on disk for each value of a list column, by encoding."""
    values = sum(int(frame[name].list.len().cast(pl.Int64).sum() or 0) for frame in frames)
    floats = frames[0].schema[name] == pl.List(pl.Float32)
    found = {}
    for writing, encoding in WRITINGS.items():
        if floats and encoding == "DELTA_BINARY_PACKED":
            continue
        size = sum(column_bytes(Rollouts.to_arrow(frame).select([name]), encoding, place / "column.parquet") for frame in frames)
        found[writing] = round(size / max(values, 1), 3)
    found["as written"] = round(sum(written_bytes(frame, name, place / "whole.parquet") for frame in frames) / max(values, 1), 3)
    return found


def written_bytes(frame: pl.DataFrame, name: str, path: Path) -> int:
    """What a list column takes in a file that rollbook writes."""
    write_parquet(path, frame, Rollouts)
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(one.total_compressed_size for one in columns if one.path_in_schema == f"{name}.list.element")


def column_bytes(column: pa.Table, encoding: str | None, path: Path) -> int:
    """What a table of one list column takes."""
    by_hand = {"use_dictionary": False, "column_encoding": {f"{column.column_names[0]}.list.element": encoding}}
    pq.write_table(column, path, compression="zstd", **(by_hand if encoding else {}))
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(number).column(0).total_compressed_size for number in range(metadata.num_row_groups))


def both(frame: pl.DataFrame, place: Path) -> tuple[Path, Path]:
    """The rollouts with pyarrow's defaults, and as rollbook writes them."""
    default, ours = place / "default.parquet", place / "ours.parquet"
    pq.write_table(Rollouts.to_arrow(frame), default, compression="zstd", row_group_size=16384)
    write_parquet(ours, frame, Rollouts)
    return default, ours


def by_reader(frame: pl.DataFrame, place: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of reading the columns of tokens, with the dictionary and as rollbook writes them."""
    tokens = int(frame["completion_token_ids"].list.len().cast(pl.Int64).sum())
    logprobs = pl.col("behavior_logprobs")
    frame = pl.concat([frame.with_columns(logprobs * (1 - i / 2**17)) for i in range(-(-LEAST_TOKENS // tokens))])
    frame = frame.with_columns(logprobs.cast(pl.List(pl.Float32)))
    default, ours = both(frame, place)
    found = {}
    for name, read in readers(place).items():
        read(default), read(ours)
        pairs = [(seconds(read, default), seconds(read, ours)) for _ in range(rounds)]
        ratio = statistics.median(mine / theirs for theirs, mine in pairs)
        before, now = (round(statistics.median(times), 4) for times in zip(*pairs, strict=True))
        found[name] = {"dictionary": before, "rollbook": now, "ratio": round(ratio, 3)}
    return found


def readers(place: Path) -> dict[str, Callable[[Path], Any]]:
    """A way to read the columns of tokens, by the name and version of the library."""
    columns = list(COLUMNS)
    found: dict[str, Callable[[Path], Any]] = {
        "pyarrow": lambda path: pq.read_table(path, columns=columns),
        "polars": lambda path: pl.read_parquet(path, columns=columns),
    }
    try:
        import pandas

        found["pandas"] = lambda path: pandas.read_parquet(path, columns=columns)
    except ImportError:
        pass
    try:
        import duckdb

        sums = "sum(list_sum(prompt_token_ids)), sum(list_sum(completion_token_ids)), sum(list_sum(behavior_logprobs))"
        found["duckdb"] = lambda path: duckdb.sql(f"select {sums} from '{path}'").fetchall()
    except ImportError:
        pass
    try:
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        found["datasets"] = lambda path: Dataset.from_parquet(
            str(path), columns=columns, cache_dir=str(place / f"cache-{time.monotonic_ns()}")
        )
    except ImportError:
        pass
    return {f"{name} {importlib.metadata.version(name)}": read for name, read in found.items()}


def seconds(read: Callable[[Path], Any], path: Path) -> float:
    started = time.process_time()
    read(path)
    return time.process_time() - started


def show(record: dict[str, Any]) -> None:
    print(f"{record['completions']:,} completions, {record['completion_tokens']:,} tokens in {record['files']} files\n")
    names = [*WRITINGS, "as written"]
    print(f"| bytes a value | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name, found in record["bytes_per_value"].items():
        print(f"| {name} | {' | '.join(f'{found[writing]:.2f}' if writing in found else '' for writing in names)} |")
    whole = record["file_bytes_per_completion_token"]
    print(f"\nwhole files, bytes a token: {whole['dictionary']:.2f} with dictionaries, {whole['rollbook']:.2f} as written\n")
    print("| reader | CPU s with dictionaries | CPU s as written | ratio |\n|---|---|---|---|")
    for name, found in record["reading"].items():
        print(f"| {name} | {found['dictionary']:.3f} | {found['rollbook']:.3f} | {found['ratio']:.2f} |")


if __name__ == "__main__":
    main()
