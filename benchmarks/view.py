"""How long the pages of `rollbook view` take over a million completions.

    python benchmarks/view.py --rows 1000000 --out benchmarks/results/view.json

Writes a store of one rollouts artifact (files of 4,096 completions of about 24 tokens, in groups of 8) and its shaped table,
starts `rollbook view` on it, and asks for pages as a browser does: wall seconds of each, from the request to the last byte.
Every filter is asked for once, so that nothing of its answer is remembered; files are in the page cache. `start` is from the
command to the address that it prints; `cpu` is the server's processor seconds over all pages, and `peak` its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts, Shaped
from schemas.table import Table

ROLLBOOK = [sys.executable, "-m", "flows.cli"]
SAMPLES, ROWS_PER_FILE, MEAN_TOKENS, VOCABULARY = 8, 4096, 24, 32_000
WORDS = np.array(
    ["so", "we", "take", "add", "from", "sum", "left", "then", "apples", "oranges", "trains", "miles", "carry", "gives"]
)
PAGES = {
    "first screen": "",
    "last page": "page={last}",
    "filter reward>0.5": "q=reward>0.5",
    "filter status, tokens": "q=status=truncated tokens>30",
    "filter advantage": "q=advantage<-0.4 keep=true",
    "search a word": "q=oranges",
    "search what is not there": "q=zebra",
    "sort by -tokens": "sort=-tokens",
    "sort by logprob": "sort=logprob",
    "page 900 of a filter": "q=reward>0.5&page=900",
}


def build(store: Store, rows: int) -> tuple[Artifact, Artifact]:
    """Rollouts and their shaped table."""
    with store.work(Request("rollouts", "generate/1", {"purpose": "train", "rows": rows})) as work:
        assert isinstance(work, Work)
        for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
            frame = completions(number, start, min(ROWS_PER_FILE, rows - start))
            work.write_table(f"part-{number:05d}.parquet", frame, Rollouts)
        rollouts = work.finish({"completions": rows, "iteration": 0})
    with store.work(Request("shaped", "shape/2", {}, (rollouts.as_parent("rollouts"),))) as work:
        assert isinstance(work, Work)
        for number, path in enumerate(rollouts.tables("rollouts")):
            keys = pl.read_parquet(path, columns=["group_id", "sample_index", "reward"])
            same = {"weight": pl.lit(1.0), "keep": pl.lit(True), "drop_reason": pl.lit(None)}
            mean = pl.col("reward").mean().over("group_id")
            frame = keys.with_columns(advantage=pl.col("reward") - mean, **same).drop("reward")
            work.write_table(f"part-{number:05d}.parquet", frame.cast(types(Shaped)), Shaped)
        return rollouts, work.finish({"completions": rows})


def completions(number: int, start: int, rows: int) -> pl.DataFrame:
    random = np.random.default_rng(number)
    lengths = random.integers(MEAN_TOKENS // 2, MEAN_TOKENS * 3 // 2, rows)
    spans, total = np.cumsum(lengths)[:-1], int(lengths.sum())
    group = (start + np.arange(rows)) // SAMPLES
    reward = random.integers(0, 2, rows).astype(float)
    frame: dict[str, Any] = {
        "group_id": [f"p{one}@0123abcd" for one in group],
        "sample_index": np.arange(rows) % SAMPLES,
        "prompt_id": [f"p{one}" for one in group],
        "prompt_token_ids": [[1, 2, 3, 4]] * rows,
        "completion_token_ids": np.split(random.integers(0, VOCABULARY, total), spans),
        "behavior_logprobs": np.split(-random.exponential(0.7, total).astype(np.float32), spans),
        "prompt_text": [f"What is {one} plus {one}?" for one in group],
        "completion_text": [" ".join(words) for words in np.split(random.choice(WORDS, total), spans)],
        "answer": [str(2 * one) for one in group],
        "reward": reward,
        "reward_exact_match": reward,
        "seed": start + np.arange(rows),
        "status": np.where(random.random(rows) < 0.1, "truncated", "ok"),
    }
    same = {
        "finish_reason": "stop",
        "policy_id": "random",
        "policy_version": 0,
        "source": "self",
        "temperature": 1.0,
        "top_p": 1.0,
    }
    same |= {"top_k": 0, "min_p": 0.0, "logprobs_mode": "processed_logprobs", "engine": "random"}
    columns = types(Rollouts) | {"reward_exact_match": pl.Float64}
    filled = {name: frame.get(name, [same.get(name)] * rows) for name in columns}
    return pl.DataFrame({name: pl.Series(name, list(values)) for name, values in filled.items()}).cast(columns)


def types(table: type[Table]) -> dict[str, Any]:
    return {name: column.dtype for name, column in table.columns().items()}


def asked(url: str) -> float:
    """Seconds of one page."""
    started = time.perf_counter()
    with urllib.request.urlopen(url, timeout=600) as answer:
        answer.read()
    return round(time.perf_counter() - started, 3)


def address(url: str, query: str, last: int) -> str:
    fields = urllib.parse.parse_qsl(query.format(last=last))
    return f"{url}?{urllib.parse.urlencode(fields)}"


def measure(store: Path, rows: int) -> dict[str, Any]:
    started = time.perf_counter()
    with subprocess.Popen(
        [*ROLLBOOK, "view", str(store)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        start = round(time.perf_counter() - started, 2)
        pages = {name: asked(address(url, query, -(-rows // 50))) for name, query in PAGES.items()}
        pages["first screen again"] = asked(url)
        rollouts = next(artifact for artifact in Store(store).artifacts() if artifact.kind == "rollouts")
        group = urllib.parse.urlencode({"of": rollouts.id[:16], "group": f"p{rows // SAMPLES // 2}@0123abcd"})
        pages["a group side by side"] = asked(f"{url}group?{group}")
        stat = Path(f"/proc/{server.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        server.terminate()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return {"start_seconds": start, "pages_seconds": pages, "cpu_seconds": round(cpu, 1), "peak_mb": round(peak / 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path, help="Keep the store there, and use what is there already.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.store or Path(temporary) / "store"
        store = Store(place)
        if not list(store.artifacts()):
            build(store, options.rows)
        size = sum(file.bytes for artifact in store.artifacts() for file in artifact.files)
        found = measure(place, options.rows)
    record = {
        "command": f"python benchmarks/view.py --rows {options.rows}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "polars": pl.__version__},
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "rows": options.rows,
        "store_mb": round(size / 1e6),
        **found,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
