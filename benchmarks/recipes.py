"""What the recipes of configs/recipes reach on the tiny model, beside SFT and plain GRPO on as many rollouts.

    python benchmarks/recipes.py --seeds 0 1 2 --audit
    python benchmarks/recipes.py --table                      # prints what is kept, and runs nothing

Every recipe as it stands, with 64 prompts x 8 completions in each iteration. What all runs of a seed begin with (prompts, the
base model, its rollouts and its evaluation) is made once and linked into each run's store; processes are shared too, without
Prefect around them. A run that is there already is only read, so the command goes on where it was stopped; --out is written
after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from flows.answers import hands, looking, working
from flows.chain import chain
from pipeline.config.load import load_config
from pipeline.config.run import RunConfig
from pipeline.look.audit.audit import audit
from pipeline.run.processes import Processes
from pipeline.run.record import load_run, save_run
from pipeline.run.state import Run
from pipeline.run.status import status

HERE = Path(__file__).resolve().parents[1]
BASELINES = ("sft", "grpo")
LONGEST = 4
"""Iterations of the baselines: as many as the longest recipe's, so that each recipe has their checkpoint on as many rollouts."""
ORDER = (
    *BASELINES, "rec", "topr", "bapo", "remix", "spear", "density", "rlhf-essentials", "opa-dpo", "ipo", "online-ipo", "ipo-md",
    "nash-md",
)  # fmt: skip
CONTROLS = {"grpo-3-epochs": ("grpo", {"iterations": 3, "train.epochs": 3})}
"""No recipe, but what tells where a gain comes from: GRPO with about as many optimizer steps as recipes that replay."""
ALL = (*ORDER, *CONTROLS)
SETTINGS = {
    "generate.prompts": 64,
    "generate.samples": 8,
    "generate.shard_groups": 32,
    "data.heldout.limit": 128,
    "evaluate.samples": 4,
    "evaluate.k": "[1, 4]",
    "engine.kv_cache_mib": 128,
    "stop.no_signal": "null",
}
BEGINNING = ("checkpoint", "prompts", "rollouts", "evaluation")
"""Kinds of artifacts that all runs of a seed begin with."""
ITERATIONS = {"sft": LONGEST, "grpo": LONGEST, "rec": 3, "bapo": 3, "density": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(ALL), choices=ALL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=HERE / "runs" / "benchmark" / "recipes", help="directory of runs and store")
    parser.add_argument("--out", type=Path, default=HERE / "benchmarks" / "results" / "recipes.json")
    parser.add_argument("--audit", action="store_true", help="audit each run deeply, and write down whether it is sound")
    parser.add_argument("--table", action="store_true", help="print the table of --out")
    args = parser.parse_args()
    if not args.table:
        make(args)
    runs = json.loads(args.out.read_text(encoding="utf-8"))["runs"]
    print(table(runs), diagnostics(runs), sep="\n\n")


def make(args: argparse.Namespace) -> None:
    """Every run that is missing, seed by seed."""
    kept = json.loads(args.out.read_text(encoding="utf-8"))["runs"] if args.out.exists() else []
    runs = {(one["recipe"], one["seed"]): one for one in kept}
    with hands() as processes:
        for seed in args.seeds:
            for recipe in args.recipes:
                run = done(recipe, seed, args.root, processes)
                before = runs.get((recipe, seed), {})
                runs[recipe, seed] = {"recipe": recipe, "seed": seed, **figures(run), "sound": before.get("sound")}
                if args.audit and not before.get("sound"):
                    runs[recipe, seed]["sound"] = is_sound(run)
                write(args.out, sorted(runs.values(), key=lambda one: (ALL.index(one["recipe"]), one["seed"])))
                print(f"{recipe}, seed {seed}: {runs[recipe, seed]['curve'][-1]['pass_at_1']:.3f}", flush=True)


def done(recipe: str, seed: int, root: Path, processes: Processes) -> Run:
    """A recipe's run, from start to end, or what is left of it."""
    directory, begun = root / f"{recipe}-{seed}", root / f"begun-{seed}"
    if not (begun / "run.json").exists():
        first = settings_of("grpo", seed, begun)
        chain(first, working(first, processes), until=("evaluate", 0))
        save_run(chain(first, looking(first)), begun)
    if not directory.exists():
        for kind in BEGINNING:
            shutil.copytree(begun / "artifacts" / kind, directory / "artifacts" / kind, copy_function=os.link)
    config = settings_of(recipe, seed, directory)
    chain(config, working(config, processes), lambda so_far: save_run(so_far, directory))
    return load_run(directory)


def settings_of(recipe: str, seed: int, directory: Path) -> RunConfig:
    """A recipe at the benchmark's size."""
    settings = {**SETTINGS, "seed": seed, "run_dir": directory, "model.path": HERE / "data/base"}
    settings |= {f"data.{name}.path": HERE / f"data/arithmetic/{name}.parquet" for name in ("train", "heldout")}
    settings |= {"iterations": ITERATIONS[recipe]} if recipe in ITERATIONS else {}
    recipe, changes = CONTROLS.get(recipe, (recipe, {}))
    settings |= changes
    return load_config(HERE / f"configs/recipes/{recipe}.yaml", [f"{key}={value}" for key, value in settings.items()])


CURVE = ("pass_at_1", "greedy_accuracy", "kl_behavior", "entropy", "replayed_completions", "scheduled", "algorithm")
SHAPED = ("kept", "positive_share")
STEPS = ("ess", "clip_fraction_positive", "clip_fraction_negative", "age_mean", "completion_tokens_mean", "left_out")


def figures(run: Run) -> dict[str, Any]:
    """What a run's page says of each iteration's policy, and of the training that followed."""
    curve = []
    for told, step in zip(status(run)["iterations"], run.iterations, strict=True):
        one = {name: told[name] for name in CURVE}
        if step.shaped and step.checkpoint:
            metrics = pl.read_parquet(step.checkpoint.path / "metrics.parquet")
            one |= {name: step.shaped.summary.get(name) for name in SHAPED}
            one |= {name: metrics[name].mean() for name in STEPS} | {"steps": metrics.height}
            if pairs := step.checkpoint.manifest.provenance.notes.get("reference_logprobs_of_pairs"):
                one["reference_logprobs_of_pairs"] = pairs
        curve.append(one)
    return {"rollouts": sum(one.answers.rollouts.summary["completions"] for one in run.iterations[:-1]), "curve": curve}


def is_sound(run: Run) -> bool:
    """Whether a deep audit finds nothing."""
    return audit(str(run.config.directory), deep=True, samples=16, steps=1).status == 0


def write(out: Path, runs: list[dict[str, Any]]) -> None:
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python " + " ".join(sys.argv),
        "runs": runs,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each recipe: means over its seeds, and its last checkpoint less those of the baselines on as many rollouts."""
    by_recipe = {name: {one["seed"]: one["curve"] for one in runs if one["recipe"] == name} for name in ALL}
    lines = [
        "| recipe | seeds | iterations | greedy base | greedy last | pass@1 base | pass@1 last | over SFT | over GRPO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, curves in by_recipe.items():
        if not curves:
            continue
        cells = [f"`{name}`", str(len(curves)), str(len(next(iter(curves.values()))) - 1)]
        for figure in ("greedy_accuracy", "pass_at_1"):
            cells += [f"{statistics.mean(curve[place][figure] for curve in curves.values()):.3f}" for place in (0, -1)]
        for baseline in BASELINES:
            over = [
                curve[-1]["pass_at_1"] - by_recipe[baseline][seed][len(curve) - 1]["pass_at_1"]
                for seed, curve in curves.items()
                if seed in by_recipe[baseline]
            ]
            cells.append(f"{statistics.mean(over):+.3f} ({', '.join(f'{each:+.3f}' for each in over)})" if over else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


DIAGNOSTICS = {
    "kept": "kept",
    "positive_share": "positive share",
    "replayed_completions": "replayed",
    "age_mean": "age",
    "left_out": "without gradient",
    "clip_fraction_positive": "clipped A > 0",
    "clip_fraction_negative": "clipped A < 0",
    "ess": "ESS",
    "kl_behavior": "KL",
    "entropy": "entropy",
}
"""Figures of a run's last training, means over its optimizer steps and over seeds."""


def diagnostics(runs: list[dict[str, Any]]) -> str:
    """What methods do to their data and how far they go: optimizer steps of the whole run, and figures of its last training.

    `pairs` is how much less likely the reference finds preferred completions than rejected ones, in nats per token.
    """
    lines = [f"| recipe | steps | {' | '.join(DIAGNOSTICS.values())} | pairs |", "|---" * (len(DIAGNOSTICS) + 3) + "|"]
    for name in ALL:
        curves = [one["curve"] for one in runs if one["recipe"] == name]
        if not curves:
            continue
        last = [curve[-2] for curve in curves]
        pairs = [one.get("reference_logprobs_of_pairs") for one in last]
        cells = [_mean([sum(step["steps"] for step in curve[:-1]) for curve in curves])]
        cells += [_mean([one.get(figure) for one in last]) for figure in DIAGNOSTICS]
        cells.append(_mean([pair and pair["chosen"] - pair["rejected"] for pair in pairs]))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: list[float | None]) -> str:
    """Of what is defined; a dash where nothing is."""
    there = [value for value in values if value is not None]
    return f"{statistics.mean(there):.3g}" if there else "–"


if __name__ == "__main__":
    main()
