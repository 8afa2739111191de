"""What a model learns with a calculator: held-out pass@1 and calls per episode, iteration by iteration, over seeds.

    python benchmarks/tools.py --seeds 0 1 2 --out benchmarks/results/tools.json

Runs `rollbook run configs/tools.yaml` for each seed, into runs/benchmark-tools/, and prints a Markdown table. Runs that are there
already are not repeated.
"""

from __future__ import annotations

import argparse
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

from pipeline.run.record import load_run

ROLLBOOK = str(Path(sys.executable).parent / "rollbook")


def run(seed: int, root: Path) -> dict[str, Any]:
    """One run. Returns its figures with the wall time and the processor time of the command."""
    directory, before, started = root / str(seed), _processor_seconds(), time.monotonic()
    settings = {"seed": seed, "run_dir": directory, "store": root / "artifacts"}
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run([ROLLBOOK, "run", "configs/tools.yaml", *changes], check=True, stdout=subprocess.DEVNULL)
    seconds, processor = time.monotonic() - started, _processor_seconds() - before
    status = subprocess.run([ROLLBOOK, "status", str(directory), "--json"], check=True, capture_output=True, text=True)
    steps = json.loads(status.stdout)["iterations"]
    curve = []
    for step, made in zip(steps, load_run(directory).iterations, strict=False):
        assert made.answers is not None and made.answers.sampled is not None
        figures = made.answers.sampled.summary
        episodes = figures["episodes"]
        calls = {"calls_per_episode": episodes["calls"] / figures["completions"], "tool_errors": episodes["tool_errors"]}
        curve.append({"pass_at_1": step["pass_at_1"], "greedy": step["greedy_accuracy"], **calls})
    return {"seed": seed, "seconds": seconds, "processor_seconds": processor, "curve": curve}


def _processor_seconds() -> float:
    """Of processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark-tools"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tools.json"))
    args = parser.parse_args()
    runs = [run(seed, args.root) for seed in args.seeds]
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python benchmarks/tools.py --seeds " + " ".join(map(str, args.seeds)),
        "runs": runs,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("| iteration | held-out pass@1 (each seed) | greedy | calls per episode |")
    print("|---|---|---|---|")
    for number, steps in enumerate(zip(*(one["curve"] for one in runs), strict=True)):
        mean = {name: statistics.mean(step[name] for step in steps) for name in ("pass_at_1", "greedy", "calls_per_episode")}
        each = ", ".join(f"{step['pass_at_1']:.3f}" for step in steps)
        print(f"| {number} | {mean['pass_at_1']:.3f} ({each}) | {mean['greedy']:.3f} | {mean['calls_per_episode']:.2f} |")
    print(f"\n{statistics.mean(one['processor_seconds'] for one in runs):.0f} s of processor time each")


if __name__ == "__main__":
    main()
