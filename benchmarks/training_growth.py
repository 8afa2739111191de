"""Whether a token costs more in a larger snapshot, and what a second process gives.

    python benchmarks/training_growth.py
    python benchmarks/training_growth.py --steps 2 --rounds 1      # a quick look

Growth: one epoch over snapshots of 1, 10 and 100 times --steps optimizer steps, each trained by the train stage in a process
of its own. Figures: seconds per completion token of the whole stage (opening, steps, waiting, checkpoint) and of a median
step, share of the time spent waiting for data, and anonymous memory at its peak (pages of token files are the kernel's).

Processes: the same steps by one process with one thread, one process with two, and two processes with one each. Each round
runs all three.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from training_contenders import train_spec
from training_task import SHAPES, SIZES, VOCABULARIES, Cell, machine, prepare, record

TIMES = (1, 10, 100)
HANDS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
"""Processes and threads of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="short", choices=list(SHAPES), help="of the growing snapshots")
    parser.add_argument("--size", default="1M", choices=list(SIZES))
    parser.add_argument("--vocabulary", default="8k", choices=list(VOCABULARIES))
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of the smallest snapshot")
    parser.add_argument("--processes-cell", type=lambda text: text.split(","), default=["gsm8k", "20M", "8k"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("/tmp/rollbook-benchmark"), help="for models and data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_growth.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(trained(**json.loads(args.work))))
        return
    cell = Cell(args.shape, args.size, args.vocabulary)
    found = {"machine": machine(), "command": f"python benchmarks/training_growth.py --steps {args.steps} --rounds {args.rounds}"}
    record(args.out, f"growth: {cell.name}", {**found, "snapshots": growth(cell, args)})
    cell = Cell(*args.processes_cell)
    record(args.out, f"processes: {cell.name}", {**found, "hands": processes(cell, args)})


def growth(cell: Cell, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for times in TIMES:
        places = prepare(cell, args.store, times * args.steps)
        rows.append({"times": times, **child({"places": places, "cell": vars(cell)}, 2)})
        print(f"{times:>4} x: {words(rows[-1])}, {rows[-1]['anonymous_mib']:.0f} MiB", flush=True)
    return rows


def processes(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    places = prepare(cell, args.store)
    found: dict[str, list[float]] = {name: [] for name in HANDS}
    for _ in range(args.rounds):
        for name, (count, threads) in HANDS.items():
            one = child({"places": places, "cell": vars(cell), "epochs": 4, "processes": count}, threads)
            found[name].append(one["step_seconds_per_token"])
            print(f"{name}: {words(one)}", flush=True)
    alone = found["1 process, 1 thread"]
    speed = {name: [a / b for a, b in zip(alone, times, strict=True)] for name, times in found.items()}
    return {
        name: {
            "seconds_per_token": statistics.median(times),
            "times_one_thread": {"median": statistics.median(speed[name]), "least": min(speed[name]), "most": max(speed[name])},
        }
        for name, times in found.items()
    }


def words(one: dict[str, Any]) -> str:
    return (
        f"{one['tokens']} tokens, {1e6 * one['seconds_per_token']:.1f} us a token in all, "
        f"{1e6 * one['step_seconds_per_token']:.1f} us in a median step, {one['waiting']:.2%} waiting for data"
    )


def child(order: dict[str, Any], threads: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--work", json.dumps(order)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def trained(places: dict[str, str], cell: dict[str, str], epochs: int = 1, processes: int = 1) -> dict[str, Any]:
    """What training over a snapshot took. The first step, in which memory is first touched, is in no step's figure."""
    from pipeline.run.process import Reporter
    from pipeline.store.store import load_artifact
    from pipeline.train.stage import train

    with TemporaryDirectory() as store, Peak() as peak:
        spec = train_spec(places, Cell(**cell), epochs, store, processes=processes)
        started = time.perf_counter()
        artifact = load_artifact(train(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])
        seconds = time.perf_counter() - started
        timing = pl.read_parquet(artifact.path / "timing.parquet")
        metrics = pl.read_parquet(artifact.path / "metrics.parquet", columns=["tokens"])
    per_token = (timing["seconds"] / metrics["tokens"])[1:]
    return {
        "tokens": int(metrics["tokens"].sum()),
        "steps": len(timing),
        "seconds_per_token": seconds / metrics["tokens"].sum(),
        "step_seconds_per_token": per_token.median(),
        "waiting": timing["data_seconds"].sum() / timing["seconds"].sum(),
        "anonymous_mib": peak.bytes / 2**20,
    }


class Peak:
    """Largest memory of this process that no file backs, looked at every 20 ms."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, held)


if __name__ == "__main__":
    main()
