"""Where the time of a training step goes, and how much of the machine's matrix rate it reaches.

    python benchmarks/training_profile.py --shape gsm8k --size 20M --vocabulary 8k [--compile]

One step of the train stage's own parts (Feed, Stepper) under torch.profiler, after two that are not. Shares are of the
profiler's self CPU time, by kind of operation; seconds of the parts of the step are wall time without the profiler.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from training_contenders import RATE, train_spec
from training_task import SHAPES, SIZES, VOCABULARIES, Cell, machine, matmul_rate, prepare, record, step_flops

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "exponentials": ("aten::exp", "aten::exp_"),
    "sums, products, norms": ("aten::mul", "aten::add", "aten::sub", "aten::sum", "aten::pow", "aten::amax", "aten::div"),
    "copies and gathers": ("aten::copy_", "aten::cat", "aten::index", "aten::gather", "aten::fill_", "aten::zero_"),
    "activation": ("aten::silu",),
    "compiled": ("## Call CompiledFxGraph",),
    "optimizer": ("aten::_fused_adamw_",),
}
"""Operations by how their names start, the longest start winning. What is in none of them is "other", Python included."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="gsm8k", choices=list(SHAPES))
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--vocabulary", default="8k", choices=list(VOCABULARIES))
    parser.add_argument("--compile", action="store_true", help="with `train.compile`; the first step compiles")
    parser.add_argument("--store", type=Path, default=Path("/tmp/rollbook-benchmark"), help="for models and data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_profile.json"))
    args = parser.parse_args()
    cell = Cell(args.shape, args.size, args.vocabulary)
    from pipeline.train.memory import memory_kept

    with TemporaryDirectory() as scratch, memory_kept():
        figures = profiled(cell, prepare(cell, args.store), Path(scratch), compiled=args.compile)
    for name in ("seconds", "shares"):
        print(name, {key: round(value, 4) for key, value in figures[name].items()})
    print(f"{figures['of_matmul_rate']:.2f} of {figures['matmul_rate'] / 1e9:.0f} GFLOP/s")
    command = f"python benchmarks/training_profile.py --shape {args.shape} --size {args.size} --vocabulary {args.vocabulary}"
    option, name = (" --compile", f"{cell.name}, compiled") if args.compile else ("", cell.name)
    record(args.out, name, {"machine": machine(), "command": command + option, **figures})


def profiled(cell: Cell, places: dict[str, Any], scratch: Path, *, compiled: bool) -> dict[str, Any]:
    """Seconds of a step's parts, shares by kind of operation, and the share of the matrix rate."""
    from pipeline.algorithms import resolve
    from pipeline.config.train import TrainConfig
    from pipeline.run.parts import Part
    from pipeline.store.store import load_artifact
    from pipeline.train.feed import Feed
    from pipeline.train.layout import open_snapshot
    from pipeline.train.metrics import StepRecord
    from pipeline.train.model import Policy
    from pipeline.train.step import Stepper
    from pipeline.train.team import alone

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    spec = train_spec(places, cell, 3, str(scratch))
    config, algorithm = TrainConfig.model_validate(spec["train"]), resolve("dapo", {})
    parent = load_artifact(places["checkpoint"])
    snapshot = open_snapshot(scratch / "snapshot", [Part.opened(part) for part in spec["parts"]], algorithm, parent.id)
    policy = Policy(parent.path, cell.dtype, trust_remote_code=False, compiled=compiled)
    feed = Feed(snapshot, config, 0, policy.cost_model(), alone(), whole_step=False)
    stepper = Stepper(policy, algorithm, config, 1, alone(), lambda step: RATE)
    seconds = {}
    for number in range(2):
        for name, part in parts_of(feed, stepper, snapshot.has_behavior, number, StepRecord):
            started = time.perf_counter()
            part()
            seconds[name] = time.perf_counter() - started
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _, part in parts_of(feed, stepper, snapshot.has_behavior, 2, StepRecord):
            part()
    rate = matmul_rate(cell.dtype)
    flops = step_flops(cell) / sum(seconds.values())
    return {"seconds": seconds, "shares": shares(profiler), "matmul_rate": rate, "of_matmul_rate": flops / rate}


def parts_of(feed: Any, stepper: Any, has_behavior: bool, number: int, record_of: Any) -> list[tuple[str, Any]]:
    """The parts of a step in order, as functions."""
    held: dict[str, Any] = {}

    def data() -> None:
        held["step"] = next(feed.steps(number))

    def gradient() -> None:
        stepper.gradient(held["step"], record_of(has_behavior, 0))

    return [("data", data), ("forward and backward", gradient), ("optimizer", lambda: stepper.update(number))]


def shares(profiler: Any) -> dict[str, float]:
    """Share of self CPU time of each kind of operation."""
    found = dict.fromkeys([*KINDS, "other"], 0.0)
    starts = sorted(((start, kind) for kind, names in KINDS.items() for start in names), key=lambda pair: -len(pair[0]))
    for event in profiler.key_averages():
        kind = next((kind for start, kind in starts if event.key.startswith(start)), "other")
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {kind: value / total for kind, value in found.items()}


if __name__ == "__main__":
    main()
