"""Training seconds an epoch on a run's own rollouts, iteration by iteration, here and by an earlier commit.

    rollbook run configs/demo.yaml --set run_dir=runs/demo
    git worktree add ../earlier COMMIT
    python benchmarks/training_demo.py runs/demo/artifacts --before ../earlier

Completions of a model that has learned something start alike, so this is where sharing shows; those of training_step.py are
random and share nothing but prompts. Each checkout's own train stage works on the same artifacts, in processes of their own;
the first step is left out. Losses of the first step are compared before anything is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, Any] = {
    "algorithm": "rec-oneside-nois",
    "batch_completions": 256,
    "learning_rate": 1e-4,
    "max_grad_norm": 1.0,
}
"""As configs/demo.yaml has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="artifacts of a run")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_demo.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(json.loads(args.work))
        return
    if args.store is None or args.before is None:
        parser.error("needs a store and --before CHECKOUT")
    measure(args)


def measure(args: argparse.Namespace) -> None:
    from training_step import _without_places, commit_of, spread
    from training_task import machine

    figures: dict[str, Any] = {"machine": machine(), "before": commit_of(args.before), "iterations": []}
    figures["command"] = "python benchmarks/training_demo.py STORE " + shlex.join(_without_places(sys.argv[2:]))
    for number, places in enumerate(trainings(args.store)):
        rounds = []
        for _ in range(args.rounds):
            rounds.append(
                {name: child(checkout, places, args.epochs) for name, checkout in (("here", HERE), ("before", args.before))}
            )
            here, before = rounds[-1]["here"], rounds[-1]["before"]
            if abs(here["loss"] - before["loss"]) > 1e-5 * abs(before["loss"]):
                sys.exit(f"iteration {number}: loss {here['loss']} here, {before['loss']} before; nothing is kept")
        one: dict[str, Any] = {
            f"{clock}_{name}": statistics.median(each[name][clock] for each in rounds)
            for clock in ("seconds", "cpu_seconds")
            for name in ("here", "before")
        }
        for clock in ("seconds", "cpu_seconds"):
            one[f"{clock}_of_before"] = spread([each["here"][clock] / each["before"][clock] for each in rounds])
        one["packing"] = rounds[0]["here"]["packing"]
        figures["iterations"].append(one)
        print(
            f"iteration {number}: {one['cpu_seconds_here']:.2f} CPU seconds an epoch, {one['cpu_seconds_before']:.2f} before",
            end="",
        )
        ratio, packing = one["cpu_seconds_of_before"], one["packing"]
        print(f": {ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f}); {packing}", flush=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def trainings(store: Path) -> list[dict[str, str]]:
    """Checkpoint, rollouts and shaped artifact of every iteration's training."""
    contents = {}
    for path in store.glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        contents[manifest["id"]] = (path.parent, manifest["content"])
    found = {}
    for place, content in contents.values():
        parents = {parent["role"]: str(contents[parent["id"]][0]) for parent in content["parents"] if parent["id"] in contents}
        if content["kind"] == "checkpoint" and {"policy", "rollouts", "shaped"} <= parents.keys():
            found[content["recipe"]["iteration"]] = {**parents, "checkpoint": parents["policy"], "made": str(place)}
    return [found[number] for number in sorted(found)]


def child(checkout: Path, places: dict[str, str], epochs: int) -> dict[str, Any]:
    """What a process of a checkout measures."""
    from training_task import answered

    order = {"places": places, "epochs": epochs, "benchmarks": str(checkout.resolve() / "benchmarks")}
    found: dict[str, Any] = answered([sys.executable, __file__], order, checkout.resolve(), str(checkout))
    return found


def work(order: dict[str, Any]) -> None:
    """Train by the checkout that this process imports from."""
    sys.path.insert(0, order["benchmarks"])
    import polars as pl
    from training_contenders import train_spec
    from training_task import Cell

    try:
        from pipeline.run.process import Reporter
        from pipeline.store.store import load_artifact
    except ModuleNotFoundError:  # commits before rooms had their names
        from pipeline.artifacts.store import load_artifact  # type: ignore[no-redef]
        from pipeline.process import Reporter  # type: ignore[no-redef]
    from pipeline.train.stage import train

    clock: list[tuple[float, float]] = []

    class Watch(Reporter):
        def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
            clock.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as store:
        spec = train_spec(order["places"], Cell("short", "1M", "8k"), order["epochs"], store, **SETTINGS)
        made = load_artifact(train(spec, Watch(os.open(os.devnull, os.O_WRONLY)))["artifact"])
        loss = pl.read_parquet(made.path / "metrics.parquet")["loss"][0]
        notes = json.loads((made.path / "manifest.json").read_text(encoding="utf-8"))["provenance"]["notes"]
    seconds, cpu = (last - first for first, last in zip(clock[0], clock[-1], strict=True))
    share = len(clock) / (len(clock) - 1) / order["epochs"]
    answer = {"loss": loss, "seconds": seconds * share, "cpu_seconds": cpu * share, "packing": notes.get("packing")}
    Path(order["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
