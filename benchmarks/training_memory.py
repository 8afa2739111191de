"""Peak memory of trainings on a CPU, beside what is estimated before anything is started.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --cell short,135M,49k
    python benchmarks/training_memory.py --cell short,0.5B,150k --lora 16 --steps 1 --trainings 1

Two trainings by the train stage at its default settings for memory, one after the other in one process, as in a run of two
iterations; the second one starts from the first one's checkpoint. Models have random weights and the shapes of the demo's,
SmolLM2-135M and Qwen2.5-0.5B. A training's peak is that of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from training_step import _without_places
from training_task import Cell, machine, prepare, record

CELLS = ("short,1M,8k", "short,135M,49k", "short,0.5B,150k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", default=list(CELLS), help="shape,size,vocabulary of training_task.py")
    parser.add_argument("--lora", type=int, help="rank of adapters, in place of all weights")
    parser.add_argument("--steps", type=int, default=3, help="of a training")
    parser.add_argument("--trainings", type=int, default=2, help="one after the other")
    parser.add_argument("--carry", action="store_true", help="train.optimizer_state: carry")
    parser.add_argument(
        "--store", type=Path, default=Path(tempfile.gettempdir()) / "rollbook-benchmark", help="for models and data"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_memory.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(trained(**json.loads(args.work))))
        return
    for cell in (Cell(*text.split(",")) for text in args.cell):
        order = {"store": str(args.store), "cell": vars(cell), "steps": args.steps}
        child({**order, "trainings": 0})  # so that what is made here is not measured
        found = child({**order, "carry": args.carry, "lora": args.lora, "trainings": args.trainings})
        for number, one in enumerate(found["trainings"]):
            what = f"{cell.name}, training {number}: {one['tokens']:,} tokens a pass"
            amounts = f"estimated {one['estimated'] / 1e9:.2f} GB, taken {one['peak'] / 1e9:.2f} GB"
            print(f"{what}, {amounts} ({one['peak'] / one['estimated'] - 1:+.0%})", flush=True)
        command = "python benchmarks/training_memory.py " + shlex.join(_without_places(sys.argv[1:]))
        name = cell.name + (f", LoRA of rank {args.lora}" if args.lora else "") + (", carry" if args.carry else "")
        record(args.out, name, {"machine": machine(), "command": command.strip(), **found})


def child(order: dict[str, Any]) -> Any:
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    command = [sys.executable, __file__, "--work", json.dumps(order)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def trained(
    store: str, cell: dict[str, str], steps: int, trainings: int, carry: bool = False, lora: int | None = None
) -> dict[str, Any]:
    """What was estimated and taken by each training."""
    from training_contenders import train_spec

    from pipeline.common.room import host_room
    from pipeline.config.train import TrainConfig
    from pipeline.run.process import Reporter
    from pipeline.store.store import load_artifact
    from pipeline.train.needs import choose, size_in
    from pipeline.train.stage import train

    places, found = prepare(Cell(**cell), Path(store), steps), []
    settings: dict[str, Any] = {"tokens_per_micro_batch": "auto", "optimizer_state": "carry" if carry else "fresh"}
    settings |= {"lora": {"rank": lora}} if lora else {}
    room = host_room()
    with tempfile.TemporaryDirectory() as made:
        for _ in range(trainings):
            policy = Path(places["checkpoint"])
            Path("/proc/self/clear_refs").write_text("5")
            spec = train_spec(places, Cell(**cell), 1, made, **settings)
            config = TrainConfig.model_validate(spec["train"])
            size = size_in({path.name: path for path in policy.iterdir()}, config.lora)
            assert size is not None
            fit = choose(size, config, "float32", "cpu", room.free, room.of, longest=64)
            artifact = load_artifact(train(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])
            notes = artifact.manifest.provenance.notes["memory"]
            found.append({"estimated": fit.bytes, "chosen": notes["bytes"], "tokens": notes["tokens"], "peak": highest()})
            places = {**places, "checkpoint": str(artifact.path)}
    return {"trainings": found}


def highest() -> int:
    """Most memory since the last look, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
