"""Training on a model's own rollouts: rollbook's train stage beside TRL's GRPOTrainer, fed with the same completions.

    make real                                                              # or any run whose model draws what is trained on
    python benchmarks/training_real.py runs/real/artifacts --trl-python .venv-peers/bin/python

Takes the first groups of a training of a run. Every contender trains one epoch over them, with the same loss (PPO's clipped
surrogate with the stored logprobs, averaged over the step's tokens), advantages of group mean and deviation, AdamW, fp32, in a
process of its own, in turn:

    rollbook   the train stage at its default settings for memory. It leaves out completions whose gradient is zero by itself.
    trl        GRPOTrainer with its own default passes of 8 completions and gradient checkpointing.
    trl-plain  the same without checkpointing.
    trl-live   as trl-plain, given only groups whose rewards differ.
    before     the train stage of an earlier commit, whose checkout `--before` names, with --tokens tokens a pass: before there
               was `auto`, its default took more than the machine had.

Before anything is timed, loss and gradient of a step must agree between the first two. Seconds and CPU seconds are of the
training loop, all steps, without loading and saving; memory is the peak of the whole process in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
from training_step import _without_places, check, commit_of, spread
from training_task import SHAPES, Cell, Shape, answered, machine, record

HERE = Path(__file__).resolve().parents[1]
GROUP = 8
CELL = Cell("real", "", "49k")
"""Of the vocabulary, only how many logits a plain loop may hold depends on it."""
TRL = {
    "trl": {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    "trl-plain": {"per_device_train_batch_size": 8, "gradient_checkpointing": False},
    "trl-live": {"per_device_train_batch_size": 8, "gradient_checkpointing": False},
}
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 5e-5
"""Relative. 30 layers in fp32 leave 1.2e-5 between two orders of adding up."""
OURS = ("rollbook", "before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="artifacts of a run")
    parser.add_argument("--iteration", type=int, default=0, help="whose training")
    parser.add_argument("--groups", type=int, default=64, help="how many of them")
    parser.add_argument("--batch", type=int, default=64, help="completions of a step; groups of 8 in whole steps")
    parser.add_argument("--contender", default=",".join(["rollbook", *TRL]))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--name", default="SmolLM2-135M", help="of the figures")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, for the contender `before`")
    parser.add_argument("--tokens", type=int, default=3000, help="a pass of `before`")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter of an environment that has TRL")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_real.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(json.loads(args.work))
    elif args.store is None:
        parser.error("names no store")
    elif "before" in args.contender.split(",") and args.before is None:
        parser.error("the contender `before` needs --before CHECKOUT")
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    from training_demo import trainings

    training = trainings(args.store)[args.iteration]
    names = args.contender.split(",")
    with tempfile.TemporaryDirectory() as place:
        told: dict[str, Any] = child(
            args, "rollbook", {"do": "prepare", "training": training, "groups": args.groups, "store": place}
        )
        print(f"{args.name}: {told['words']}", flush=True)
        differences = agree(args, names, told["first"], place)
        rounds: list[dict[str, Any]] = []
        for number in range(args.rounds):
            rounds.append({})
            for name in names:
                places = told["live" if name == "trl-live" else "all"]
                found = rounds[-1][name] = child(args, name, {"do": "time", "contender": name, **places})
                print(f"  round {number + 1}, {name}: {found}", flush=True)
                if name == "before" and not abs(found["loss"] / rounds[-1]["rollbook"]["loss"] - 1) <= LOSS_TOLERANCE:
                    sys.exit("the earlier commit does not compute what rollbook computes; nothing is kept")
    figures: dict[str, Any] = {
        "machine": machine(),
        "command": "python benchmarks/training_real.py STORE " + shlex.join(_without_places(sys.argv[2:])),
        "data": told["data"],
        "words": told["words"],
        "contenders": {},
    }
    for name in names:
        clocks = ("seconds", "cpu_seconds", "peak")
        one = figures["contenders"][name] = {key: spread([each[name][key] for each in rounds]) for key in clocks}
        if name == "before":
            one |= {"commit": commit_of(args.before), "tokens_per_micro_batch": args.tokens}
        for key in clocks:
            one[f"{key}_over_rollbook"] = spread([each[name][key] / each["rollbook"][key] for each in rounds])
        one |= differences.get(name, {})
        ratios = ", ".join(f"{one[f'{key}_over_rollbook']['median']:.2f} x {key}" for key in ("seconds", "cpu_seconds", "peak"))
        print(f"  {name:10s} {ratios}", flush=True)
    record(args.out, args.name, figures)


def agree(args: argparse.Namespace, names: list[str], places: dict[str, Any], place: str) -> dict[str, Any]:
    """Relative differences of the first step's loss and gradient to rollbook's. Exits if they are too large."""
    found: dict[str, Any] = {}
    for name in [name for name in names if name != "before"][:2]:  # TRL's others only recompute less, or have fewer completions
        where = {"gradient": f"{place}/{name}", "reference": f"{place}/{names[0]}"}
        found[name] = child(args, name, {"do": "check", "contender": name, **places, **where})
        found[name]["loss_difference"] = abs(found[name]["loss"] / found[names[0]]["loss"] - 1)
        print(f"  {name}: {found[name]}", flush=True)
        if found[name]["loss_difference"] > LOSS_TOLERANCE or found[name]["gradient_difference"] > GRADIENT_TOLERANCE:
            sys.exit(f"{name} does not compute what {names[0]} computes; nothing was timed")
    return found


def child(args: argparse.Namespace, contender: str, order: dict[str, Any]) -> Any:
    """What a process of its own answers to an order."""
    python = args.trl_python if contender in TRL else sys.executable
    checkout = args.before.resolve() if contender == "before" else HERE
    told = {"batch": args.batch, "benchmarks": str(checkout / "benchmarks"), "tokens": args.tokens}
    return answered([python, __file__], {**order, **told}, checkout, contender)


def work(order: dict[str, Any]) -> None:
    """Carry out an order in this process, by the checkout that it imports from."""
    sys.path.insert(0, order["benchmarks"])
    SHAPES["real"] = Shape((0, 0), lambda random: 0, GROUP, order["batch"], "a model's own rollouts")
    if order["do"] == "prepare":
        answer: Any = prepared(order["training"], order["groups"], Path(order["store"]))
    elif order["do"] == "check":
        _bind(order["contender"], order["temperature"])
        answer = check(order, CELL)
    elif order["contender"] in OURS:
        answer = rollbook(order["places"], "auto" if order["contender"] == "rollbook" else order["tokens"])
    else:
        answer = trl(order["contender"], order["places"], order["steps"], order["temperature"])
    Path(order["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def prepared(training: dict[str, str], groups: int, store: Path) -> dict[str, Any]:
    """Artifacts of the first groups, of those among them that teach something, and of the first step that does."""
    from pipeline.common.lengths import length

    rows = pl.read_parquet(f"{training['rollouts']}/part-*.parquet")
    chosen = rows["group_id"].unique(maintain_order=True).head(groups)
    rows = rows.filter(pl.col("group_id").is_in(chosen.implode()))
    live = rows.filter(pl.col("reward").n_unique().over("group_id") > 1)
    per_step = SHAPES["real"].completions // GROUP
    live_groups, dead_groups = live["group_id"].n_unique(), groups - live["group_id"].n_unique()
    step = live["group_id"].unique(maintain_order=True).head(per_step)
    filled = rows.filter(pl.col("group_id").is_in(step.implode()))
    if len(step) < per_step:
        others = rows.filter(~pl.col("group_id").is_in(step.implode()))["group_id"].unique(maintain_order=True)
        filled = pl.concat([filled, rows.filter(pl.col("group_id").is_in(others.head(per_step - len(step)).implode()))])
    tokens = int(rows.select(length("completion_token_ids").sum()).item())
    live_tokens = int(live.select(length("completion_token_ids").sum()).item())
    data = {"groups": groups, "live_groups": live_groups, "tokens": tokens, "live_tokens": live_tokens}
    longest = rows["completion_token_ids"].list.len().max()
    words = (
        f"{groups} groups of {GROUP}, {tokens:,} completion tokens, {longest} at most; {dead_groups} groups with equal rewards"
    )
    made = {name: written(name, frame, training, store) for name, frame in (("all", rows), ("live", live), ("first", filled))}
    return {**made, "data": data, "words": words}


def written(name: str, rows: pl.DataFrame, training: dict[str, str], store: Path) -> dict[str, Any]:
    """Rollouts and their advantages as artifacts, and how many steps an epoch has."""
    from pipeline.common.lengths import length
    from pipeline.store import Request, Store, Work
    from pipeline.store.store import load_artifact
    from schemas import Rollouts, Shaped

    reward = pl.col("reward")
    over = (reward - reward.mean().over("group_id")) / (reward.std().over("group_id") + 1e-4)
    shaped = rows.select(
        "group_id",
        "sample_index",
        advantage=over.cast(pl.Float32),
        weight=pl.lit(1.0, pl.Float32),
        keep=pl.lit(True),
        drop_reason=pl.lit(None, pl.String),
    )
    policy = load_artifact(training["checkpoint"])
    places = {"checkpoint": training["checkpoint"]}
    parents = [policy.as_parent("policy")]
    for kind, frame, schema in (("rollouts", rows, Rollouts), ("shaped", shaped, Shaped)):
        with Store(str(store)).work(Request(kind, f"{kind}/1", {"benchmark": name}, tuple(parents))) as work:
            assert isinstance(work, Work)
            work.write_table("part-00000.parquet", frame, schema)
            counted = {"completions": len(rows), "tokens": int(rows.select(length("completion_token_ids").sum()).item())}
            artifact = work.finish(counted if kind == "rollouts" else {})
        places[kind], parents = str(artifact.path), [artifact.as_parent("rollouts")]
    (temperature,) = rows["temperature"].unique()  # TRL has one for all
    return {
        "places": places,
        "temperature": temperature,
        "steps": -(-rows["group_id"].n_unique() * GROUP // SHAPES["real"].completions),
    }


def _bind(contender: str, temperature: float) -> None:
    """Have `check` find the contender."""
    import training_contenders as contenders

    if contender in TRL:
        settings = TRL[contender] | {"temperature": temperature}
        contenders.CHECKS[contender] = lambda places, cell: contenders.trl_gradient(places, cell, **settings)


def rollbook(places: dict[str, str], tokens: int | str) -> dict[str, float]:
    """One epoch by the train stage, and the loss of its first step."""
    from training_contenders import train_spec

    try:
        from pipeline.run.process import Reporter
        from pipeline.store.store import load_artifact
    except ModuleNotFoundError:  # commits before rooms had their names
        from pipeline.artifacts.store import load_artifact  # type: ignore[no-redef]
        from pipeline.process import Reporter  # type: ignore[no-redef]
    from pipeline.train import stage
    from pipeline.train.training import Training

    found: dict[str, float] = {}

    class Watched(Training):
        def run(self, *given: Any) -> None:
            with measured(found):
                super().run(*given)

    stage.Training = Watched  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as store:
        spec = train_spec(places, CELL, 1, store, tokens_per_micro_batch=tokens)
        made = load_artifact(stage.train(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])
        found["loss"] = pl.read_parquet(made.path / "metrics.parquet")["loss"][0]
    return found


def trl(contender: str, places: dict[str, str], steps: int, temperature: float) -> dict[str, float]:
    """One epoch by GRPOTrainer."""
    from training_contenders import MAX_NORM, trl_trainer
    from transformers import TrainerCallback

    found: dict[str, float] = {}
    watch = measured(found)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.__enter__()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            watch.__exit__(None, None, None)

    trl_trainer(places, CELL, steps, MAX_NORM, Watch(), temperature=temperature, **TRL[contender]).train()
    return found


class measured:
    """Adds seconds, CPU seconds and the peak of memory of a block."""

    def __init__(self, found: dict[str, float]) -> None:
        self._found = found

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: Any) -> None:
        from training_memory import highest

        wall, cpu = self._started
        self._found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "peak": highest()}


if __name__ == "__main__":
    main()
