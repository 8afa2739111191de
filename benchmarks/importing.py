"""Rows of text into rollouts: `rollbook import` beside its own earlier commit and beside datasets, in turns.

    python benchmarks/importing.py                              # 100,000 completions of 24 tokens in 12,500 groups
    python benchmarks/importing.py --rows 1000000 --files 10000 --only rollbook

Everybody reads the same JSONL and makes token ids of prompts and completions with the demo's tokenizer. rollbook and its earlier
commit (a checkout in a temporary directory) are their commands, start included, and also group, check, hash and write Parquet;
datasets is `load_dataset("json")` and a batched `map` that tokenizes. Seconds are of the wall and of the processor, with all
threads: the latter are what is left of a figure when other work shares the machine. `start` is the same with eight rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "base"
BEFORE = "c58570e"
PER_GROUP, ANSWER = 8, 20
FEW = 8
DATASETS = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer.model_max_length = sys.maxsize
def tokenize(batch):
    prompts = tokenizer(batch["prompt"])["input_ids"]
    return {"prompt_ids": prompts, "completion_ids": tokenizer(batch["completion"], add_special_tokens=False)["input_ids"]}
found = load_dataset("json", data_files=sys.argv[3:], split="train", cache_dir=sys.argv[2])
print(len(found.map(tokenize, batched=True)))
"""
Command = Callable[[list[Path], Path], tuple[list[str], Path]]
"""Of files and a directory to write into: what is run, and where."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=1, help="that the rows lie in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="rollbook, before or datasets; default: all, in turns")
    parser.add_argument("--write", type=Path, help="results, such as benchmarks/results/importing.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        files, few = make(root / "rows", args.rows, args.files), make(root / "few", FEW, 1)
        with checkout(root / "before") as before:
            commands = {"rollbook": rollbook(ROOT), "before": rollbook(before), "datasets": datasets}
            wanted = [args.only] if args.only else list(commands)
            timed: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
            for number in range(args.rounds):
                for name in wanted:
                    timed[name].append(measured(commands[name], files, few, root / "made"))
                    print(f"round {number}: {name} {timed[name][-1]}", flush=True)
        result = {
            "command": f"python benchmarks/importing.py --rows {args.rows} --files {args.files} --rounds {args.rounds}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} processors, {platform.machine()}; load {os.getloadavg()[1]:.0f}",
            "rows": {"completions": args.rows, "files": args.files, "bytes": sum(file.stat().st_size for file in files)},
            "rounds": timed,
            "median": {name: median(rounds) for name, rounds in timed.items()},
        }
    for name, figures in result["median"].items():
        print(name, figures)
    if args.write:
        args.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make(directory: Path, rows: int, files: int) -> list[Path]:
    """Sums and answers of about 24 tokens, in groups of eight; the same for the same numbers."""
    directory.mkdir()
    draw, made = random.Random(0), []
    paths = [directory / f"completions-{number:05d}.jsonl" for number in range(files)]
    for number in range(rows):
        group = number // PER_GROUP
        if number % PER_GROUP == 0:
            prompt, total = f"Q:{draw.randrange(100)}+{group}=", draw.randrange(200)
        answer = "".join(draw.choices("0123456789+-=,", k=ANSWER))
        row = {"prompt": prompt, "completion": f"{answer}A:{total}", "reward": float(number % 2), "group_id": f"group-{group}"}
        made.append(json.dumps(row))
    each = -(-rows // files)
    for number, path in enumerate(paths):
        path.write_text("\n".join(made[number * each : (number + 1) * each]) + "\n", encoding="utf-8")
    return paths


class checkout:
    """The earlier commit's tree, while it is needed."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> Path:
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(self._place), BEFORE], cwd=ROOT, check=True)
        return self._place

    def __exit__(self, *_: object) -> None:
        subprocess.run(["git", "worktree", "remove", "--force", str(self._place)], cwd=ROOT, check=True)


def rollbook(tree: Path) -> Command:
    def command(files: list[Path], made: Path) -> tuple[list[str], Path]:
        options = ["--format", "plain", "--store", str(made), "--model", str(MODEL)]
        return [sys.executable, "-m", "flows.cli", "import", str(files[0].parent), *options], tree

    return command


def datasets(files: list[Path], made: Path) -> tuple[list[str], Path]:
    return [sys.executable, "-c", DATASETS, str(MODEL), str(made), *map(str, files)], ROOT


def measured(command: Command, files: list[Path], few: list[Path], made: Path) -> dict[str, float]:
    start, figures = run(*command(few, made)), {}
    shutil.rmtree(made, ignore_errors=True)
    figures = run(*command(files, made))
    shutil.rmtree(made, ignore_errors=True)
    return {**figures, "start_wall": start["wall"], "start_cpu": start["cpu"]}


def run(call: list[str], tree: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(call, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        wall, process.returncode = time.monotonic() - began, os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(call[:5])}: {said.read()[-2000:]}")
    cpu = used.ru_utime + used.ru_stime
    return {"wall": round(wall, 2), "cpu": round(cpu, 2), "most_memory_mb": used.ru_maxrss // 1024}


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    found = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
    return found | {"cpu_beside_start": round(found["cpu"] - found["start_cpu"], 2)}


if __name__ == "__main__":
    main()
