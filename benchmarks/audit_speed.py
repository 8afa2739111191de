"""How fast a shallow audit reads, beside what the machine can do with the same files in the same minutes.

    python benchmarks/audit_speed.py --weights-mb 3840 --rollouts-mb 256 --out benchmarks/results/audit_speed.json

Writes two stores of random data: one of a checkpoint and rollouts, as a run leaves them, and one of rollouts alone, whose rows
take far longer to decode than to hash. Files are in the page cache when they are read. What is measured, in turns: `rollbook
audit` with its start; Python's hashlib over the files, as many at once as there are cores, which is the bound of any audit;
reading them without hashing; and `sha256sum`, one file after the other, and as many at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.store import Artifact, Request, Store, Work
from schemas import Prompts, Rollouts

ROLLBOOK = str(Path(sys.executable).parent / "rollbook")
VOCABULARY, SAMPLES, LENGTH, GROUPS_PER_FILE = 32_000, 8, 512, 128


def checkpoint(store: Store, megabytes: int) -> Artifact:
    """Random weights in files of half a gigabyte."""
    random = np.random.default_rng(0)
    with store.work(Request("checkpoint", "import-random/1", {"megabytes": megabytes})) as work:
        assert isinstance(work, Work)
        (work.path / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}), encoding="utf-8")
        for number, start in enumerate(range(0, megabytes, 512)):
            values = min(512, megabytes - start) * 250_000
            header = json.dumps({f"w{number}": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
            with (work.path / f"model-{number:05d}.safetensors").open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.write(random.standard_normal(values, dtype=np.float32).tobytes())
        return work.finish({"iteration": 0})


def prompts(store: Store, count: int) -> Artifact:
    with store.work(Request("prompts", "prompts/1", {"chat": True, "count": count})) as work:
        assert isinstance(work, Work)
        names = [f"p{number}" for number in range(count)]
        asked = [f"What is {number} plus {number}?" for number in range(count)]
        rows = {"prompt_id": names, "question": asked, "answer": names, "prompt_text": asked, "metadata": [None] * count}
        work.write_table("prompts.parquet", pl.DataFrame(rows, schema=types(Prompts)), Prompts)
        return work.finish({"prompts": count})


def rollouts(store: Store, policy: Artifact, asked: Artifact, megabytes: int) -> Artifact:
    """Completions of random tokens: files of 128 groups, about 3.5 MB each."""
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 2 * LENGTH, "stop": []}
    recipe = {"purpose": "speed", "samples": SAMPLES, "sampling": sampling, "reward": [{"grader": "exact_match", "weight": 1.0}]}
    request = Request("rollouts", "generate/1", recipe, (policy.as_parent("policy"), asked.as_parent("prompts")))
    with store.work(request) as work:
        assert isinstance(work, Work)
        number = 0
        while sum(path.stat().st_size for path in work.path.iterdir()) < megabytes * 1_000_000:
            frame = completions(number, request.key[:8], policy.id)
            work.write_table(f"part-{number:05d}.parquet", frame, Rollouts)
            number += 1
        return work.finish({"groups": number * GROUPS_PER_FILE, "policy_version": 0})


def completions(part: int, key: str, policy: str) -> pl.DataFrame:
    rows = GROUPS_PER_FILE * SAMPLES
    random = np.random.default_rng(part)
    group = np.arange(rows) // SAMPLES + part * GROUPS_PER_FILE
    lengths = random.integers(LENGTH // 2, 3 * LENGTH // 2, rows)
    total = int(lengths.sum())
    ids = (random.zipf(1.3, total) % VOCABULARY).astype(np.int32)
    text = [" ".join(map(str, part)) for part in np.split(ids, np.cumsum(lengths)[:-1])]
    reward = random.integers(0, 2, rows).astype(float)
    frame = {
        "group_id": [f"p{number}@{key}" for number in group],
        "sample_index": np.arange(rows) % SAMPLES,
        "prompt_id": [f"p{number}" for number in group],
        "prompt_token_ids": lists(np.repeat(random.integers(0, VOCABULARY, rows // SAMPLES * 64).astype(np.int32), SAMPLES), 64),
        "completion_token_ids": lists(ids, lengths),
        "behavior_logprobs": lists(-random.exponential(0.7, total).astype(np.float32), lengths),
        "prompt_text": [f"What is {number} plus {number}?" for number in group],
        "completion_text": text,
        "answer": [f"p{number}" for number in group],
        "reward": reward,
        "reward_exact_match": reward,
        "seed": np.arange(rows) + part * rows,
    }
    same = {"finish_reason": "stop", "policy_id": policy, "policy_version": 0, "source": "self", "temperature": 1.0, "top_p": 1.0}
    same |= {"top_k": 0, "min_p": 0.0, "logprobs_mode": "processed_logprobs", "engine": "random", "status": "ok"}
    columns = types(Rollouts) | {"reward_exact_match": pl.Float64}
    filled = {name: frame.get(name, [same.get(name)] * rows) for name in columns}
    return pl.DataFrame({name: pl.Series(name, values, dtype=columns[name]) for name, values in filled.items()})


def lists(values: np.ndarray[Any, Any], lengths: Any) -> pl.Series:
    sizes = np.broadcast_to(lengths, len(values) // lengths if isinstance(lengths, int) else lengths.shape)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pl.Series(pl.from_arrow(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))))


def types(table: Any) -> dict[str, Any]:
    return {name: column.dtype for name, column in table.columns().items()}


def seconds(command: list[str], files: list[str] | None = None) -> float:
    started = time.monotonic()
    given = "\0".join(files).encode() if files else None
    subprocess.run(command, input=given, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def hashed(files: list[str]) -> None:
    """Hash files, as many at once as there are cores."""

    def one(path: str) -> None:
        with open(path, "rb") as file:
            hashlib.file_digest(file, "sha256")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, files))


def read(files: list[str]) -> None:
    """Read files one after the other, and do nothing with them."""
    block = bytearray(4 << 20)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(block):
                pass


def timed(work: Callable[[list[str]], None], files: list[str]) -> float:
    started = time.monotonic()
    work(files)
    return time.monotonic() - started


def measure(store: Path, repeats: int) -> dict[str, Any]:
    files = sorted(str(path) for path in store.rglob("*") if path.is_file())
    size = sum(os.path.getsize(path) for path in files)
    cores = str(os.cpu_count())
    commands = {
        "rollbook audit": ([ROLLBOOK, "audit", str(store), "--json"], None),
        "sha256sum": (["xargs", "-0", "sha256sum"], files),
        f"sha256sum, {cores} at once": (["xargs", "-0", "-n1", "-P", cores, "sha256sum"], files),
    }
    seconds(*commands["sha256sum"])  # so that the page cache has them
    inside = json.loads(subprocess.run(commands["rollbook audit"][0], check=True, capture_output=True).stdout)
    here = {f"hashlib, {cores} at once": hashed, "reading": read}
    times: dict[str, list[float]] = {name: [] for name in [*commands, *here]}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(*command))
        for name, work in here.items():
            times[name].append(timed(work, files))
    speeds = {name: round(size / statistics.median(values) / 1e6) for name, values in times.items()}
    return {
        "bytes": size,
        "files": len(files),
        "mb_per_second": speeds,
        "audit_of_bound": round(speeds["rollbook audit"] / speeds[f"hashlib, {cores} at once"], 2),
        "audit_without_start": round(size / inside["seconds"] / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-mb", type=int, default=3840)
    parser.add_argument("--rollouts-mb", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/audit_speed.json"))
    args = parser.parse_args()
    results = {}
    for name, megabytes in (("checkpoint and rollouts", args.weights_mb), ("rollouts alone", 1)):
        with tempfile.TemporaryDirectory(prefix="rollbook-speed-") as place:
            store = Store(place)
            policy, asked = checkpoint(store, megabytes), prompts(store, 20_000)
            rollouts(store, policy, asked, args.rollouts_mb)
            results[name] = measure(Path(place), args.repeats)
            print(name, json.dumps(results[name]), flush=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "command": "python " + " ".join(sys.argv),
        "stores": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
