"""What orchestration costs: the same small run through the `rollbook` command with Prefect, and as plain function calls.

    python benchmarks/orchestration.py --repeats 3 --out benchmarks/results/orchestration.json

Both do one iteration of the demo with 16 prompts, in a fresh run directory each time, one after the other. The difference is
what Prefect costs: its server's start, the flow, its tasks and artifacts, less what overlaps with the first stage's start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROLLBOOK = str(Path(sys.executable).parent / "rollbook")
SMALL = {"iterations": 1, "generate.prompts": 16, "train.epochs": 1, "evaluate.samples": 1, "evaluate.k": "[1]"}
PLAIN = """
import sys
from flows.chain import chain
from pipeline.config.load import load_config
from flows.answers import hands, local, working
config = load_config("configs/demo.yaml", sys.argv[1:])
with hands() as processes:
    local(config, processes).warm_up("pipeline.generate")
    chain(config, working(config, processes))
"""


def seconds(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/orchestration.json"))
    args = parser.parse_args()
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    plain, prefect = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as place:
            plain.append(seconds([sys.executable, "-c", PLAIN, *settings, f"run_dir={place}"]))
        with tempfile.TemporaryDirectory() as place:
            options = [part for setting in [*settings, f"run_dir={place}"] for part in ("--set", setting)]
            prefect.append(seconds([ROLLBOOK, "run", "configs/demo.yaml", *options]))
    cost = statistics.median(prefect) - statistics.median(plain)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python " + " ".join(sys.argv),
        "plain_seconds": plain,
        "prefect_seconds": prefect,
        "orchestration_seconds": cost,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"plain {statistics.median(plain):.1f} s, with Prefect {statistics.median(prefect):.1f} s: {cost:.1f} s (medians)")


if __name__ == "__main__":
    main()
