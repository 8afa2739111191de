"""What the demo, or another configuration, reaches: held-out pass@1 and greedy accuracy, base and last, over seeds, algorithms.

    python benchmarks/demo.py --seeds 0 1 2 --algorithms rec-oneside-nois grpo --out benchmarks/results/demo.json
    python benchmarks/demo.py --algorithms rec-oneside-nois --denominators all live --out benchmarks/results/denominators.json
    python benchmarks/demo.py --config configs/real.yaml --algorithms rec-oneside-nois --out benchmarks/results/real.json

Runs `rollbook run CONFIG` for each, into runs/benchmark/NAME/, and prints a Markdown table. Runs that are there already are
not repeated: their seconds are then those of looking. `peak_bytes` is the resident memory of the largest process, the training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROLLBOOK = str(Path(sys.executable).parent / "rollbook")


def run(config: str, algorithm: str, denominator: str, seed: int, root: Path) -> dict[str, Any]:
    """One run of `config`. Returns its status with the wall time of the command."""
    directory = root / f"{algorithm}-{denominator}-{seed}"
    settings = {
        "train.algorithm": algorithm,
        "train.denominator": denominator,
        "seed": seed,
        "run_dir": directory,
        "store": root / "artifacts",
    }
    command = [ROLLBOOK, "run", config]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    status = subprocess.run([ROLLBOOK, "status", str(directory), "--json"], check=True, capture_output=True, text=True)
    steps = json.loads(status.stdout)["iterations"]
    stages = sum(value or 0 for step in steps for value in step["seconds"].values())
    curve = [{"pass_at_1": step["pass_at_1"], "greedy": step["greedy_accuracy"]} for step in steps]
    said = {"algorithm": algorithm, "denominator": denominator, "seed": seed}
    cost = {"seconds": seconds, "seconds_in_stages": stages, "peak_bytes": peak}
    return {**said, **cost, "curve": curve}


def row(algorithm: str, runs: list[dict[str, Any]]) -> str:
    def mean(figure: str, place: int) -> str:
        return f"{statistics.mean(run['curve'][place][figure] for run in runs):.3f}"

    gains = [run["curve"][-1]["pass_at_1"] - run["curve"][0]["pass_at_1"] for run in runs]
    shown = ", ".join(f"{gain:+.3f}" for gain in gains)
    sampled = f"{mean('pass_at_1', 0)} | {mean('pass_at_1', -1)} | {statistics.mean(gains):+.3f} ({shown})"
    greedy = f"{mean('greedy', 0)} | {mean('greedy', -1)}"
    return f"| {algorithm} | {sampled} | {greedy} | {statistics.mean(run['seconds'] for run in runs):.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", default=["rec-oneside-nois", "grpo"])
    parser.add_argument("--denominators", nargs="+", default=["all"], choices=["all", "live"])
    parser.add_argument("--root", type=Path, help="directory of the runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo.json"))
    args = parser.parse_args()
    root = args.root or Path("runs/benchmark") / Path(args.config).stem
    sides = list(itertools.product(args.algorithms, args.denominators))
    results = {side: [run(args.config, *side, seed, root) for seed in args.seeds] for side in sides}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python " + " ".join(sys.argv),
        "runs": [one for runs in results.values() for one in runs],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("| algorithm | base pass@1 | last pass@1 | gain (per seed) | base greedy | last greedy | wall time |")
    print("|---|---|---|---|---|---|---|")
    for (algorithm, denominator), runs in results.items():
        print(row(algorithm if denominator == "all" else f"{algorithm}, {denominator}", runs))


if __name__ == "__main__":
    main()
