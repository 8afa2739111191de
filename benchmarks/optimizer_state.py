"""AdamW's moments carried from training to training, or fresh in each: which is nearer to one long training.

    rollbook run configs/demo.yaml
    python benchmarks/optimizer_state.py runs/demo/artifacts

On the rollouts of one iteration of the demo, one training of 32 steps (4 epochs of 8) is set beside four trainings of 8 steps
each, one after the other, with moments that are carried and with fresh ones; and beside one of 32 steps in another order, since
the order of groups is not the same in four trainings either. Figures: the distance of the weights from those of the one long
training, as a share of the way that this one went; and the loss of the last 8 steps. Stored logprobs, learning rate and data
are the same for all.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from training_contenders import train_spec
from training_demo import trainings
from training_task import Cell, machine

CONTENDERS = ("carry", "fresh", "another order")
TRAININGS, STEPS = 4, 8
ANY = Cell("short", "1M", "8k")
"""Says nothing here: model and data are the run's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="artifacts of a demo run")
    parser.add_argument("--iteration", type=int, default=0, help="whose rollouts")
    parser.add_argument("--seeds", type=int, default=3, help="of the order of groups")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3])
    parser.add_argument("--algorithm", default="rec-oneside-nois")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/optimizer_state.json"))
    args = parser.parse_args()
    places = trainings(args.store)[args.iteration]
    figures: dict[str, Any] = {"machine": machine(), "algorithm": args.algorithm, "rates": {}}
    figures["command"] = "python benchmarks/optimizer_state.py STORE " + shlex.join(sys.argv[2:])
    for rate in args.rates:
        rounds = [measured(places, args.algorithm, rate, seed) for seed in range(args.seeds)]
        figures["rates"][f"{rate:g}"] = {
            name: {figure: spread([one[name][figure] for one in rounds]) for figure in rounds[0][name]} for name in rounds[0]
        }
        for name, found in figures["rates"][f"{rate:g}"].items():
            print(f"rate {rate:g}, {name:13s} " + ", ".join(f"{figure} {value['median']:.4g}" for figure, value in found.items()))
        args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def measured(places: dict[str, str], algorithm: str, rate: float, seed: int) -> dict[str, dict[str, float]]:
    """The figures of every contender, and the loss of the one long training."""
    settings = {"algorithm": algorithm, "learning_rate": rate, "batch_completions": completions(places) // STEPS}
    with tempfile.TemporaryDirectory() as store:
        base = places["checkpoint"]
        long, loss = trained({**places, "seed": seed}, store, TRAININGS, **settings)
        way = distance(long, base)
        found: dict[str, dict[str, float]] = {"one": {"loss": loss, "way": way}}
        for name in CONTENDERS:
            if name == "another order":
                end, loss = trained({**places, "seed": seed + 1000}, store, TRAININGS, **settings)
            else:
                end, loss = base, 0.0
                for _ in range(TRAININGS):
                    end, loss = trained({**places, "checkpoint": end, "seed": seed}, store, 1, optimizer_state=name, **settings)
            found[name] = {
                "distance": distance(end, long) / way,
                "loss": loss,
                "loss_difference": abs(loss - found["one"]["loss"]),
            }
    return found


def completions(places: dict[str, str]) -> int:
    from pipeline.store.store import load_artifact

    return int(load_artifact(places["shaped"]).summary["kept"])


def trained(places: dict[str, Any], store: str, epochs: int, **settings: Any) -> tuple[str, float]:
    """Train by the train stage. Returns the checkpoint, and the mean loss of its last epoch."""
    from pipeline.run.process import Reporter
    from pipeline.store import Request
    from pipeline.store.store import load_artifact
    from pipeline.train.stage import train

    spec = train_spec(places, ANY, epochs, store, **settings)
    spec["request"]["recipe"]["seed"] = places["seed"]
    spec["request"] = Request.from_json(spec["request"]).to_json()
    made = load_artifact(train(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])
    metrics = pl.read_parquet(made.path / "metrics.parquet", columns=["epoch", "loss"])
    assert len(metrics) == epochs * STEPS
    return str(made.path), float(metrics.filter(pl.col("epoch") == epochs - 1)["loss"].mean())  # type: ignore[arg-type]


def distance(one: str, other: str) -> float:
    """Euclidean, over all weights."""
    from safetensors.torch import load_file

    a, b = (load_file(Path(place) / "model.safetensors") for place in (one, other))
    return float(sum(float((a[name] - b[name]).double().square().sum()) for name in a) ** 0.5)


if __name__ == "__main__":
    main()
