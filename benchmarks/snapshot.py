"""A snapshot in training: how long it takes to lay one out, what its index takes, and what reading takes as token files grow.

    python benchmarks/snapshot.py

First rollouts of 1,000 completions a file, with their shaped table, are opened for training: checked, joined, and laid out as
flat tokens. Twice the files should take twice the time. `CPU` is the process's, on all its threads; `peak` is its largest
resident memory. Then snapshots are reopened and read: `index` is anonymous memory after opening; `read` is how much that grew
after 5,000 groups, evenly spread, were read. Pages of token files are the kernel's to drop and are not counted. Each line is a
process of its own.
"""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.algorithms import resolve
from pipeline.run.parts import Part
from pipeline.store import Artifact, Request, Store
from pipeline.store.work import Work
from pipeline.train.layout import open_snapshot
from pipeline.train.snapshot import GROUPS, NUMBERS, TOKENS, index_name, reopened
from schemas import Rollouts, Shaped
from schemas.example import example

CASES = [(1_000_000, 20), (100_000, 100), (100_000, 1_000)]
"""Completions, and tokens of each."""
GROUP, PROMPT, READ = 8, 50, 5_000
"""Completions of a group, tokens of a prompt, groups that are read."""


FILES, PER_FILE, SHORT = (500, 1_000, 2_000), 1_000, 20
"""Files of rollouts that are opened, completions of each, tokens of a completion."""


def main() -> None:
    print(f"{'completions':>12} {'files':>12} {'tokens each':>12} {'opened in':>10} {'CPU':>10} {'peak':>10}")
    for files in FILES:
        command = [sys.executable, __file__, str(files)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)
    print()
    print(
        f"{'completions':>12} {'tokens each':>12} {'token files':>12} {'index':>10} {'per row':>8} {'read':>10} {'opened in':>10}"
    )
    for completions, tokens in CASES:
        command = [sys.executable, __file__, str(completions), str(tokens)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def measure(completions: int, tokens: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        size = write(directory, completions, tokens)
        before, started = anonymous(), time.monotonic()
        snapshot = reopened(directory)
        opened, seconds = anonymous(), time.monotonic() - started
        total = 0
        for group in range(0, len(snapshot.groups), max(1, len(snapshot.groups) // READ)):
            total += sum(int(completion.tokens.sum()) for completion in snapshot[group].completions)
        grown = anonymous() - opened
        index = opened - before
        print(
            f"{completions:>12,} {tokens:>12,} {size / 1e6:>9,.0f} MB {index / 1e6:>7,.0f} MB {index / completions:>6,.0f} B "
            f"{grown / 1e6:>7,.1f} MB {seconds:>8.1f} s"
        )


def measure_opening(files: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        part = write_artifacts(Store(Path(name) / "store"), files)
        started, used = time.monotonic(), time.process_time()
        snapshot = open_snapshot(Path(name) / "scratch", [part], resolve("rec-oneside-is"), "policy")
        seconds, used = time.monotonic() - started, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert snapshot.completions == files * PER_FILE
        print(f"{snapshot.completions:>12,} {files:>12,} {SHORT:>12,} {seconds:>8.1f} s {used:>8.1f} s {peak / 1e6:>7,.0f} MB")


def write_artifacts(store: Store, files: int) -> Part:
    """Rollouts and their shaped table, with every completion kept."""
    number = pl.int_range(PER_FILE)
    tokens = [list(range(SHORT))] * PER_FILE
    row = ast.literal_eval(example(Rollouts))
    types = {name: column.dtype for name, column in Rollouts.columns().items()} | {"reward_regex": pl.Float64}
    frame = pl.DataFrame([row] * PER_FILE, schema=types).with_columns(
        sample_index=(number % GROUP).cast(pl.Int32),
        prompt_token_ids=pl.Series([[3] * PROMPT] * PER_FILE, dtype=pl.List(pl.Int32)),
        completion_token_ids=pl.Series(tokens, dtype=pl.List(pl.Int32)),
        behavior_logprobs=pl.Series([[-1.0] * SHORT] * PER_FILE, dtype=pl.List(pl.Float32)),
        action_mask=pl.lit(None, pl.List(pl.Boolean)),
    )
    with store.work(Request("rollouts", "generate/1", {"files": files})) as work:
        assert isinstance(work, Work)
        for file in range(files):
            groups = pl.format("prompt-{}-of-a-run", number // GROUP + file * PER_FILE // GROUP)
            work.write_table(f"part-{file:05d}.parquet", frame.with_columns(group_id=groups), Rollouts)
        rollouts = work.finish({})
    keys = pl.select(number=pl.int_range(files * PER_FILE)).select(
        group_id=pl.format("prompt-{}-of-a-run", pl.col("number") // GROUP),
        sample_index=(pl.col("number") % GROUP).cast(pl.Int32),
        advantage=pl.lit(0.5, pl.Float32),
        weight=pl.lit(1.0, pl.Float32),
        keep=pl.lit(True),
        drop_reason=pl.lit(None, pl.String),
    )
    with store.work(Request("shaped", "shape/1", {"files": files}, (rollouts.as_parent("rollouts"),))) as work:
        assert isinstance(work, Work)
        work.write_table("shaped.parquet", keys.sample(fraction=1.0, shuffle=True, seed=0), Shaped)
        shaped: Artifact = work.finish({})
    return Part(rollouts, shaped)


def write(directory: Path, completions: int, tokens: int) -> int:
    """A snapshot's files, as `open_snapshot` lays them out. Returns their size in bytes."""
    for name in ("tokens", "mask", "behavior"):
        with (directory / f"{name}.bin").open("wb") as file:
            for start in range(0, completions, 10_000):
                np.ones(min(10_000, completions - start) * tokens, TOKENS[name]).tofile(file)
    np.ones(completions // GROUP * PROMPT, np.int32).tofile(directory / "prompts.bin")
    number = np.arange(completions)
    index = {
        "sample_index": number % GROUP,
        "advantage": np.full(completions, 0.5),
        "weight": np.ones(completions),
        "reward": np.ones(completions),
        "temperature": np.ones(completions),
        "policy_version": np.zeros(completions),
        "from_parent": np.ones(completions),
        "live": np.ones(completions),
        "starts_group": number % GROUP == 0,
        "length": np.full(completions, tokens),
        "start": number * tokens,
        "prompt_length": np.full(completions, PROMPT),
        "prompt_start": number // GROUP * PROMPT,
    }
    for name, kind in NUMBERS.items():
        index[name].astype(kind).tofile(directory / index_name(name))
    groups = pl.select(group_id=pl.format("prompt-{}-of-a-run", pl.int_range(completions // GROUP)))
    groups.write_ipc(directory / GROUPS)
    return sum(path.stat().st_size for path in directory.glob("*.bin"))


def anonymous() -> int:
    """Bytes of this process that are backed by no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


if __name__ == "__main__":
    {1: main, 2: measure_opening, 3: measure}[len(sys.argv)](*map(int, sys.argv[1:]))
