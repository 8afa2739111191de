"""The claims of arXiv:2509.24203 on the tiny model: runs the matrix of `matrix.py` and writes its results.

    python benchmarks/replication/run.py --jobs 2
    python benchmarks/replication/draw.py

Runs lie under --root. A run that is finished there is not repeated, and one that was interrupted goes on from the last stage
that it had finished; one that fails does not stop the others. The criteria were written down first, in criteria.md beside
this file; judge.py applies them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import polars as pl
from matrix import ARMS, GROUP, PROMPTS_PER_STEP, RATES, REGIMES, SEEDS, Job, jobs

from flows.answers import working
from pipeline.common.errors import UserError
from pipeline.config.load import load_config
from pipeline.config.run import RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.generate.order import answers_order, generator, heldout_request, rollouts_job, rollouts_request
from pipeline.run.order import Order, only
from pipeline.run.parts import Part
from pipeline.run.processes import Processes
from pipeline.shape.order import shape_order
from pipeline.sources.order import heldout_prompts_order, import_order, train_prompts_order
from pipeline.store import Artifact, read_table
from pipeline.train.order import train_order
from schemas import Metrics

CONFIG = "configs/demo.yaml"
STEP_COLUMNS = ["entropy", "kl_behavior", "clip_fraction_positive", "clip_fraction_negative", "ess", "ratio_max", "grad_norm"]
ENVIRONMENT = engine_environment() | {"OMP_NUM_THREADS": "1"}
"""One thread a process: --jobs says how many cores are taken."""


def config_of(job: Job, root: Path, heldout: int, epochs: int) -> RunConfig:
    """A run's config. All runs share one store, so that those of a seed share the base model's rollouts."""
    settings = {
        "name": job.name,
        "run_dir": root / "runs" / job.name,
        "store": root / "artifacts",
        "seed": job.seed,
        "data.heldout.limit": heldout,
        "generate.prompts": job.regime.prompts,
        "generate.samples": GROUP,
        "train.algorithm": job.arm.algorithm,
        "train.algorithm_args": json.dumps(job.arm.settings),
        "train.epochs": epochs,
        "train.batch_completions": PROMPTS_PER_STEP * GROUP,
        "train.learning_rate": repr(job.rate),
        "train.save_every_steps": 1000,
        "evaluate.samples": 4,
        "evaluate.k": "[1]",
        "evaluate.greedy": "false",
    }
    return load_config(CONFIG, [f"{key}={value}" for key, value in settings.items()])


class Run:
    """One job: what it asks for, and what it found."""

    def __init__(self, job: Job, root: Path, heldout: int, processes: Processes) -> None:
        self.job, self.root, self.heldout, self.processes = job, root, heldout, processes
        self.rows: list[dict[str, Any]] = []
        self.checkpoints: list[Artifact] = []

    def config(self, epochs: int = 1) -> RunConfig:
        return config_of(self.job, self.root, self.heldout, epochs)

    def ask(self, config: RunConfig, order: Order) -> Artifact:
        return only(working(config, self.processes).answer(order))

    def run(self) -> list[dict[str, Any]]:
        """Returns a row per optimizer step and per judgment."""
        regime = self.job.regime
        config = self.config()
        policy = base = self.ask(config, import_order(config))
        train = self.ask(config, train_prompts_order(config, base))
        heldout = self.ask(config, heldout_prompts_order(config, base, train))
        self._judge(config, 0, base, heldout)
        step = 0
        for number in range(regime.rounds):
            job = rollouts_job(rollouts_request(config, number, policy, train), train)
            rollouts = self.ask(config, answers_order(config, f"generate {number}", policy, job))
            self.rows.append({"step": step, "reward_mean": rollouts.summary["reward_mean"]})
            for epochs in regime.epochs:
                after = self.config(epochs)
                checkpoint = self._trained(after, number, policy, rollouts)
                if epochs == regime.epochs[-1]:
                    steps = self._steps(checkpoint, step)
                taken = step + checkpoint.summary["steps"]
                if (number + 1) % regime.judged_every == 0:
                    self._judge(after, taken, checkpoint, heldout)
            self.rows += steps
            policy, step = checkpoint, taken
        for checkpoint in self.checkpoints:
            shutil.rmtree(checkpoint.path, ignore_errors=True)  # 5 MB each, and the figures are kept
        return self.rows

    def _trained(self, config: RunConfig, number: int, policy: Artifact, rollouts: Artifact) -> Artifact:
        part = Part(rollouts, self.ask(config, shape_order(config, number, rollouts)))
        order = train_order(config, number, policy, [part], then=generator(config))
        self.checkpoints.append(self.ask(config, order))
        return self.checkpoints[-1]

    def _judge(self, config: RunConfig, step: int, policy: Artifact, heldout: Artifact) -> None:
        job = rollouts_job(heldout_request(config, policy, heldout, greedy=False), heldout)
        sampled = self.ask(config, answers_order(config, f"judge {step}", policy, job))
        tokens = sampled.summary["tokens"] / sampled.summary["completions"]
        self.rows.append({"step": step, "pass_at_1": sampled.summary["reward_mean"], "completion_tokens": tokens})

    def _steps(self, checkpoint: Artifact, start: int) -> list[dict[str, Any]]:
        frame = read_table(checkpoint, Metrics, ["step", *STEP_COLUMNS])
        return frame.with_columns(pl.col("step") + start).to_dicts()


def record_of(job: Job, root: Path) -> Path:
    return root / "records" / f"{job.name}.json"


def do(job: Job, root: Path, heldout: int, processes: Processes) -> None:
    """Run a job and write its record."""
    started = time.monotonic()
    rows = Run(job, root, heldout, processes).run()
    seconds = time.monotonic() - started
    value = {
        "regime": job.regime.name,
        "arm": job.arm.label,
        "rate": job.rate,
        "seed": job.seed,
        "seconds": seconds,
        "rows": rows,
    }
    record = record_of(job, root)
    record.parent.mkdir(parents=True, exist_ok=True)
    half = record.with_suffix(".half")
    half.write_text(json.dumps(value), encoding="utf-8")
    half.replace(record)
    curve = " ".join(f"{row['pass_at_1']:.2f}" for row in rows if "pass_at_1" in row)
    print(f"{job.name}: {curve}  ({seconds:.0f} s)", flush=True)


def do_all(wanted: list[Job], root: Path, heldout: int, count: int) -> int:
    """Run the jobs that have no record, `count` at once. Returns how many failed."""
    lanes: SimpleQueue[Processes] = SimpleQueue()
    every = [Processes(ENVIRONMENT) for _ in range(count)]
    for processes in every:
        lanes.put(processes)

    def attempt(job: Job) -> bool:
        processes = lanes.get()
        try:
            do(job, root, heldout, processes)
        except UserError as error:
            print(f"{job.name}: {error}", file=sys.stderr, flush=True)
            return False
        finally:
            lanes.put(processes)
        return True

    pool = ThreadPoolExecutor(count)
    try:
        return list(pool.map(attempt, [job for job in wanted if not record_of(job, root).exists()])).count(False)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for processes in every:
            processes.close()


def collect(wanted: list[Job], root: Path, out: Path) -> None:
    """Write the results of all finished runs: a Parquet table of steps and judgments, and a JSON file that says what they are."""
    types: dict[str, Any] = {"regime": pl.String, "arm": pl.String, "rate": pl.Float64, "seed": pl.Int32, "step": pl.Int32}
    types |= dict.fromkeys(("pass_at_1", "completion_tokens", "reward_mean", *STEP_COLUMNS), pl.Float32)
    rows: list[dict[str, Any]] = []
    seconds = []
    for job in wanted:
        if (record := record_of(job, root)).exists():
            value = json.loads(record.read_text(encoding="utf-8"))
            seconds.append(value["seconds"])
            rows += [{name: value[name] for name in ("regime", "arm", "rate", "seed")} | row for row in value["rows"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=types).write_parquet(out, compression="zstd")
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python " + " ".join(sys.argv),
        "runs": len(seconds),
        "runs_wanted": len(wanted),
        "seconds_per_run": round(sum(seconds) / max(len(seconds), 1), 1),
        "rows": "one per optimizer step (entropy to grad_norm), one per judgment (pass_at_1), one per round (reward_mean)",
    }
    out.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels = [arm.label for arm in ARMS]
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on a core of its own")
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--arms", nargs="+", default=labels, choices=labels, metavar="ARM", help=", ".join(labels))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--heldout", type=int, default=64, help="held-out prompts, four answers each, that a policy is judged by")
    parser.add_argument("--root", type=Path, default=Path("runs/replication"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/replication.parquet"))
    args = parser.parse_args()
    wanted = jobs(args.regimes, args.arms, args.rates, args.seeds)
    try:
        failed = do_all(wanted, args.root, args.heldout, args.jobs)
    finally:
        collect(wanted, args.root, args.out)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
