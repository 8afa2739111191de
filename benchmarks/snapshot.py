"""Memory of a snapshot in training: what its index takes, and what reading it takes as its token files grow.

python benchmarks/snapshot.py

Each line is a process of its own. `index` is anonymous memory after opening; `read` is how much that grew after 5,000
groups, evenly spread, were read. Pages of token files are the kernel's to drop and are not counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.train.snapshot import INDEX, TOKENS, reopened

CASES = [(1_000_000, 20), (100_000, 100), (100_000, 1_000)]
"""Completions, and tokens of each."""
GROUP, PROMPT, READ = 8, 50, 5_000
"""Completions of a group, tokens of a prompt, groups that are read."""


def main() -> None:
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


def write(directory: Path, completions: int, tokens: int) -> int:
    """A snapshot's files, as `open_snapshot` lays them out. Returns their size in bytes."""
    for name in ("tokens", "mask", "behavior"):
        with (directory / f"{name}.bin").open("wb") as file:
            for start in range(0, completions, 10_000):
                np.ones(min(10_000, completions - start) * tokens, TOKENS[name]).tofile(file)
    np.ones(completions // GROUP * PROMPT, np.int32).tofile(directory / "prompts.bin")
    number = pl.int_range(completions)
    pl.select(
        group_id=pl.format("prompt-{}-of-a-run", number // GROUP),
        sample_index=(number % GROUP).cast(pl.Int32),
        advantage=pl.lit(0.5, pl.Float32),
        weight=pl.lit(1.0, pl.Float32),
        reward=pl.lit(1.0, pl.Float64),
        temperature=pl.lit(1.0, pl.Float64),
        policy_version=pl.lit(0, pl.Int32),
        from_parent=pl.lit(True),
        starts_group=number % GROUP == 0,
        length=pl.lit(tokens, pl.Int64),
        start=number * tokens,
        prompt_length=pl.lit(PROMPT, pl.Int64),
        prompt_start=number // GROUP * PROMPT,
    ).write_ipc(directory / INDEX)
    return sum(path.stat().st_size for path in directory.glob("*.bin"))


def anonymous() -> int:
    """Bytes of this process that are backed by no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


if __name__ == "__main__":
    measure(*map(int, sys.argv[1:])) if len(sys.argv) > 1 else main()
