"""How time and memory of each stage that reads no tokens grow with the number of completions.

    python benchmarks/scale.py --data /tmp/scale --out benchmarks/results/scale.json
    python benchmarks/scale.py --rows 100000 --stages shape copy     # a look at one of them

Rollouts of one token each, ten completions a group, fifty thousand a file, are written once for each size into `--data` and kept
there. Every stage then runs in a process of its own, in turns: `shape` (GRPO's advantages), `copy` (a plain streaming copy of
the columns that shaping reads and writes, file by file: the least that it could take), `mix` (half of the groups are drawn),
`index` (what training holds of a snapshot), `snapshot` (laying it out), `audit` (all checks of both artifacts), and `manifest`
(as many files as `--rows` / 10, written, sealed, read and looked through). Told are CPU seconds, which other work on the
machine disturbs less than the clock; the largest memory that no file backs, looked at every 20 ms, above that of the imported
program; and the growth law between neighboring sizes: x where the figure grows with rows^x.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.algorithms import resolve
from pipeline.config.shape import ShapeConfig
from pipeline.look.audit.audit import audit
from pipeline.run.parts import Part
from pipeline.run.process import Reporter
from pipeline.shape.mix.stage import mix
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Request, Store
from pipeline.store.files import whole_file
from pipeline.store.parquet import write_parquet
from pipeline.store.store import load_artifact
from pipeline.train.layout import open_snapshot
from pipeline.train.snapshot import reopened
from schemas import Rollouts, Shaped
from schemas.manifest import Content, File, Manifest, Provenance, digest, sealed

GROUP, PER_FILE = 10, 50_000
READS = ("group_id", "sample_index", "status", "reward", "policy_version", "completion_token_ids", "action_mask")
"""Columns that shaping reads."""
Figures = dict[str, float]


def write_rollouts(store: Store, rows: int) -> Artifact:
    """Scored completions of one token: everything that is there of real ones, and few bytes of it."""
    with store.work(Request("rollouts", "generate/1", {"rows": rows})) as work:
        if isinstance(work, Artifact):
            return work
        random = np.random.default_rng(0)
        statuses: dict[str, int] = {}
        rewards = []
        for file in range(rows // PER_FILE):
            frame = rollouts(file, random)
            name = f"part-{file:05d}.parquet"
            with whole_file(work.path / name) as temporary:
                write_parquet(temporary, frame, Rollouts)
            work.has_table(name, Rollouts)
            rewards.append(float(frame["reward"].sum()))
            for status, count in frame.group_by("status").len().iter_rows():
                statuses[status] = statuses.get(status, 0) + count
        mean = math.fsum(rewards) / rows
        return work.finish({"groups": rows // GROUP, "completions": rows, "reward_mean": mean, "statuses": statuses})


def rollouts(file: int, random: np.random.Generator) -> pl.DataFrame:
    number = pl.int_range(PER_FILE) + file * PER_FILE
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    some: dict[str, Any] = {
        "group_id": pl.format("prompt-{}@0123abcd", number // GROUP),
        "sample_index": (number % GROUP).cast(pl.Int32),
        "prompt_id": pl.format("prompt-{}", number // GROUP),
        "prompt_token_ids": pl.lit([3], pl.List(pl.Int32)),
        "completion_token_ids": pl.lit([5], pl.List(pl.Int32)),
        "behavior_logprobs": pl.lit([-0.5], pl.List(pl.Float32)),
        "prompt_text": pl.lit("?"),
        "completion_text": pl.lit("!"),
        "answer": pl.lit("!"),
        "finish_reason": pl.lit("stop"),
        "reward": pl.Series(random.integers(0, 2, PER_FILE).astype(float)),
        "policy_id": pl.lit("0" * 64),
        "policy_version": pl.lit(0, pl.Int32),
        "source": pl.lit("self"),
        "seed": number.cast(types["seed"]),
        "temperature": pl.lit(1.0),
        "top_p": pl.lit(1.0),
        "top_k": pl.lit(0, types["top_k"]),
        "min_p": pl.lit(0.0),
        "logprobs_mode": pl.lit("processed_logprobs"),
        "engine": pl.lit("none"),
        "status": pl.lit("ok"),
    }
    columns = {name: some.get(name, pl.lit(None)) for name in types}
    columns = {name: column if isinstance(column, pl.Series) else column.cast(types[name]) for name, column in columns.items()}
    return pl.select(number=pl.int_range(PER_FILE)).select(**columns)


def silent() -> Reporter:
    return Reporter(os.open(os.devnull, os.O_WRONLY))


def shaped(store: Store, made: Artifact, name: str = "shape") -> Artifact:
    request = Request("shaped", "shape/1", {"called": name}, (made.as_parent("rollouts"),))
    spec = {
        "store": str(store.root),
        "request": request.to_json(),
        "rollouts": str(made.path),
        "shape": ShapeConfig().model_dump(mode="json"),
        "algorithm": "grpo",
        "algorithm_args": {},
    }
    return load_artifact(shape(spec, silent())["artifact"])


def run_shape(store: Store, made: Artifact, scratch: Path) -> None:
    shaped(Store(scratch / "made"), made)


def run_copy(store: Store, made: Artifact, scratch: Path) -> None:
    """Shaping's columns in, columns of its types out: values that are at hand stand for those that it would compute."""
    schema = Shaped.arrow_schema()
    for path in made.tables("rollouts"):
        file = pq.ParquetFile(path)
        with pq.ParquetWriter(scratch / path.name, schema, compression="zstd") as writer:
            for batch in file.iter_batches(16384, columns=list(READS), use_threads=False):
                rows = len(batch)
                reward = batch["reward"].cast(pa.float32())
                keep, none = pa.array([True]).take(pa.array(np.zeros(rows, np.int32))), pa.nulls(rows, pa.string())
                columns = [batch["group_id"], batch["sample_index"], reward, reward, keep, none]
                writer.write_batch(pa.record_batch(columns, schema=schema), row_group_size=16384)


def run_mix(store: Store, made: Artifact, scratch: Path) -> None:
    parent = shaped(store, made)
    recipe = {"groups": made.summary["groups"] // 2, "seed": 0, "iteration": 1, "loss_weight": 1.0}
    request = Request("shaped", "mix/1", recipe, (parent.as_parent("shaped"),))
    job = {"request": request.to_json(), "shaped": str(parent.path)}
    mix({"store": str(scratch / "made"), "jobs": [job]}, silent())


def run_snapshot(store: Store, made: Artifact, scratch: Path) -> None:
    place = Path(store.root) / f"snapshot-{made.id[:8]}"
    shutil.rmtree(place, ignore_errors=True)
    open_snapshot(place, [Part(made, shaped(store, made))], resolve("grpo"), "0" * 64)


def run_index(store: Store, made: Artifact, scratch: Path) -> None:
    snapshot = reopened(Path(store.root) / f"snapshot-{made.id[:8]}")
    assert snapshot.completions == made.summary["completions"]
    for group in range(0, len(snapshot.groups), max(len(snapshot.groups) // 1000, 1)):
        assert len(snapshot[group].completions) == GROUP


def run_audit(store: Store, made: Artifact, scratch: Path) -> None:
    shaped(store, made)
    for one in (made, shaped(store, made)):
        audit(str(one.path))


def run_manifest(store: Store, made: Artifact, scratch: Path) -> None:
    count = made.summary["completions"] // GROUP
    same: dict[str, Any] = {"bytes": 2999, "sha256": "3d" * 32, "rows": 256, "table": "shaped/1"}
    files = tuple(File(path=f"part-{number:07d}.parquet", **same) for number in range(count))
    content = Content(kind="shaped", key="0" * 64, stage="shape/1", parents=(), recipe={}, files=files, summary={})
    kept = made.manifest.provenance.model_copy(update={"files": ()})
    manifest = Manifest(id=digest(content.model_dump(mode="json")), content=content, provenance=Provenance(**kept.model_dump()))
    place = scratch / "shaped" / "one"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(sealed(manifest.model_dump_json(indent=2) + "\n"))
    assert len(load_artifact(place).files) == count


STAGES: dict[str, Callable[[Store, Artifact, Path], None]] = {
    "copy": run_copy,
    "shape": run_shape,
    "mix": run_mix,
    "snapshot": run_snapshot,
    "index": run_index,
    "audit": run_audit,
    "manifest": run_manifest,
}


def measure(stage: str, data: Path, rows: int) -> Figures:
    """One stage, in this process."""
    store = Store(data / str(rows))
    made = write_rollouts(store, rows)
    if stage in ("mix", "audit", "snapshot"):
        shaped(store, made)
    with tempfile.TemporaryDirectory(dir=data) as scratch, PeakMemory() as memory:
        began, cpu = time.monotonic(), spent()
        STAGES[stage](store, made, Path(scratch))
        return {"cpu": spent() - cpu, "seconds": time.monotonic() - began, "memory": memory.grown / 1e6}


def spent() -> float:
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


class PeakMemory:
    """The largest memory of this process that no file backs, in bytes: a context manager."""

    def __enter__(self) -> PeakMemory:
        self._first = self._most = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, anonymous())

    @property
    def grown(self) -> int:
        return max(self._most, anonymous()) - self._first


def anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def in_turn(stage: str, args: argparse.Namespace, rows: int) -> Figures:
    command = [sys.executable, __file__, "--measure", stage, "--rows", str(rows), "--data", str(args.data)]
    found: Figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found


def law(smaller: float, larger: float, ratio: float) -> str:
    return f"{math.log(larger / smaller) / math.log(ratio):.2f}" if smaller > 0 and larger > 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "rollbook-scale")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.data, args.rows[0])))
        return
    args.data.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for rows in args.rows:
        write_rollouts(Store(args.data / str(rows)), rows)
        for _ in range(args.rounds):
            for stage in args.stages:
                found.append({"stage": stage, "rows": rows, **in_turn(stage, args, rows)})
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print("| stage | completions | CPU s | µs of CPU each | MB at most | time grows with rows^ | memory grows with rows^ |")
    print("|---|---|---|---|---|---|---|")
    for stage in args.stages:
        earlier: tuple[int, float, float] | None = None
        for rows in args.rows:
            mine = [one for one in found if one["stage"] == stage and one["rows"] == rows]
            cpu, memory = (min(one[name] for one in mine) for name in ("cpu", "memory"))
            laws = [law(earlier[i + 1], value, rows / earlier[0]) if earlier else "" for i, value in enumerate((cpu, memory))]
            print(f"| {stage} | {rows:,} | {cpu:.2f} | {cpu / rows * 1e6:.2f} | {memory:,.0f} | {laws[0]} | {laws[1]} |")
            earlier = rows, cpu, memory
    if args.out:
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
            "command": "python " + " ".join(sys.argv),
            "rows": found,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
