"""One training step: rollbook against TRL's GRPOTrainer and a padded transformers loop, on the same stored completions.

    python benchmarks/training_step.py                                  # every cell: hours on two cores
    python benchmarks/training_step.py --shape long-8 --size 20M --vocabulary 8k
    python benchmarks/training_step.py --shape gpu --size 0.5B --vocabulary 150k --dtype bfloat16      # on a GPU
    python benchmarks/training_step.py --before ../earlier --contender rollbook,before --shape short --size 1M

TRL must be importable: `--trl-python .venv-peers/bin/python` names an environment that has it (`make .venv-peers/installed`).
`before` is the train stage of an earlier commit: `git worktree add ../earlier COMMIT`, then `--before ../earlier`. That
checkout's own benchmark runs it, in a process of its own, on the artifacts that this one made.

Per cell (shape x model x vocabulary) every contender first computes loss and gradient of the step, and nothing is timed
unless they agree. Then rounds are timed in turn: each contender in a process of its own, whose first step is left out.
Figures: completion tokens trained per second (forward, backward, clipping, optimizer, and each one's own reading and
laying-out of the data), the ratio to rollbook's within a round, and peak memory over what the process held before it loaded
the model. They are kept in benchmarks/results/training_step.json by cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from training_task import (
    SHAPES,
    SIZES,
    VOCABULARIES,
    Cell,
    answered,
    machine,
    matmul_rate,
    prepare,
    record,
    step_flops,
    step_tokens,
)

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative difference of loss and gradient. In bfloat16 the contenders round in different places."""
DENSE_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""bf16 flop/s by the makers' data sheets, without sparsity."""


def main() -> None:
    args = arguments()
    if args.work:
        work(json.loads(args.work))
        return
    for shape in args.shape:
        for vocabulary in args.vocabulary:
            for size in args.size:
                measure(Cell(shape, size, vocabulary, args.dtype), args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(name: str, known: list[str], default: list[str]) -> None:
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=default, help=f"of {', '.join(known)}")

    several("shape", list(SHAPES), [name for name in SHAPES if name != "gpu"])
    several("size", list(SIZES), [name for name in SIZES if name != "0.5B"])
    several("vocabulary", list(VOCABULARIES), list(VOCABULARIES))
    several("contender", ["rollbook", "before", "padded", "kept", "trl"], ["rollbook", "padded", "trl"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a contender in a round")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--dead", type=float, default=0.0, help="share of groups whose advantages are all 0")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, for the contender `before`")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter of an environment that has TRL")
    parser.add_argument("--launcher", default="", help='put before each timed process, such as "taskset -c 0,1"')
    parser.add_argument("--store", default=str(Path(tempfile.gettempdir()) / "rollbook-benchmark"), help="for models and data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_step.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if "before" in args.contender and not (args.before and (args.before / "benchmarks" / Path(__file__).name).exists()):
        parser.error("the contender `before` needs --before CHECKOUT, which has a benchmarks/training_step.py")
    return args


def measure(cell: Cell, args: argparse.Namespace) -> None:
    """Check, time and record one cell."""
    print(f"{cell.name}, {cell.dtype}: {SHAPES[cell.shape].words}, {SHAPES[cell.shape].completions} completions a step")
    places = child(args, "rollbook", {"do": "prepare", "cell": dataclasses.asdict(cell), "store": args.store, "dead": args.dead})
    order = {"cell": dataclasses.asdict(cell), "places": places, "steps": args.steps}
    differences = agree(order, args)
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        rounds.append({})
        for contender in args.contender:
            timed = child(args, contender, {"do": "time", "contender": contender, **order}, args.launcher)
            rounds[-1][contender] = timed
            print(f"  round {number + 1}, {contender}: {timed['seconds']} s, CPU {timed['cpu_seconds']} s", flush=True)
    figures = summary(cell, rounds, differences, args.before)
    show(figures)
    record(args.out, f"{cell.name}, {cell.dtype}" + (f", {args.dead:.0%} dead" if args.dead else ""), figures)


def agree(order: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Relative differences of loss and gradient to the first contender's. Exits if they are too large."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for contender in args.contender:
            where = {"gradient": f"{place}/{contender}", "reference": f"{place}/{args.contender[0]}"}
            found[contender] = child(args, contender, {"do": "check", "contender": contender, **order, **where})
    first = found[args.contender[0]]["loss"]
    for contender, one in found.items():
        one["loss_difference"] = abs(one["loss"] - first) / abs(first)
        print(f"  {contender}: loss {one['loss']:.8f}, relative difference {one['loss_difference']:.1e}", end="")
        print(f", of the gradient {one['gradient_difference']:.1e}", flush=True)
        if not max(one["loss_difference"], one["gradient_difference"]) <= TOLERANCE[order["cell"]["dtype"]]:
            sys.exit(f"{contender} does not compute what {args.contender[0]} computes; nothing was timed")
    return found


def child(args: argparse.Namespace, contender: str, order: dict[str, Any], launcher: str = "") -> Any:
    """What a process of its own answers to an order."""
    python = args.trl_python if contender == "trl" else sys.executable
    checkout = args.before.resolve() if contender == "before" else Path(__file__).resolve().parents[1]
    order = order | ({"contender": "rollbook"} if contender == "before" else {})
    program = [*shlex.split(launcher), python, str(checkout / "benchmarks" / Path(__file__).name)]
    return answered(program, order, checkout, contender)


def work(order: dict[str, Any]) -> None:
    """Carry out an order in this process."""
    cell = Cell(**order["cell"])
    if order["do"] == "prepare":
        answer: Any = prepare(cell, Path(order["store"]), dead=order["dead"])
    elif order["do"] == "check":
        answer = check(order, cell)
    else:
        from training_contenders import TIMERS

        timed = TIMERS[order["contender"]](order["places"], cell, order["steps"])
        rounded = ([round(seconds, 4) for seconds in column] for column in (timed.seconds, timed.cpu_seconds))
        answer = {**dict(zip(("seconds", "cpu_seconds"), rounded, strict=True)), "peak": timed.peak}
    Path(order["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def check(order: dict[str, Any], cell: Cell) -> dict[str, float]:
    """Loss of the first step, and how far its gradient is from the first contender's, as a share of that one's norm."""
    from safetensors.torch import load_file, save_file
    from training_contenders import CHECKS

    loss, gradient = CHECKS[order["contender"]](order["places"], cell)
    gradient = {name: tensor.float().cpu().contiguous() for name, tensor in gradient.items()}
    if order["gradient"] == order["reference"]:
        save_file(gradient, order["gradient"])
    reference = load_file(order["reference"])
    if gradient.keys() != reference.keys():
        sys.exit(f"gradients of other parameters: {gradient.keys() ^ reference.keys()}")
    apart = sum(float((gradient[name] - of).double().square().sum()) for name, of in reference.items())
    size = sum(float(of.double().square().sum()) for of in reference.values())
    return {"loss": loss, "gradient_difference": (apart / size) ** 0.5}


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def summary(cell: Cell, rounds: list[dict[str, Any]], differences: dict[str, Any], before: Path | None) -> dict[str, Any]:
    tokens, every = step_tokens(cell)
    figures: dict[str, Any] = {
        "machine": machine(),
        "command": "python benchmarks/training_step.py " + shlex.join(_without_places(sys.argv[1:])),
        "shape": SHAPES[cell.shape].words,
        "completion_tokens": tokens,
        "tokens_with_prompts_once": every,
        "flops": step_flops(cell),
        "contenders": {},
    }
    for name in rounds[0]:
        seconds = [statistics.median(one[name]["seconds"]) for one in rounds]
        figures["contenders"][name] = {
            "tokens_per_second": tokens / statistics.median(seconds),
            "seconds": spread(seconds),
            "cpu_seconds": spread([statistics.median(one[name]["cpu_seconds"]) for one in rounds]),
            "peak_gib": statistics.median(one[name]["peak"] for one in rounds) / 2**30,
            **differences[name],
        }
        if name == "before" and before:
            figures["contenders"][name]["commit"] = commit_of(before)
        if "rollbook" in rounds[0]:
            for clock in ("seconds", "cpu_seconds"):
                times = [statistics.median(one[name][clock]) / statistics.median(one["rollbook"][clock]) for one in rounds]
                figures["contenders"][name][f"{clock}_over_rollbook"] = spread(times)
    if figures["machine"]["gpu"]:
        figures["utilization"] = utilization(cell, figures)
    return figures


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def utilization(cell: Cell, figures: dict[str, Any]) -> dict[str, Any]:
    """Share of the GPU's flop/s, by its data sheet and by its own rate of a large product, and tokens per second in all."""
    gpu = figures["machine"]["gpu"]
    sheet = next((rate for name, rate in DENSE_PEAK.items() if name in gpu), None)
    found: dict[str, Any] = {"data_sheet": sheet, "measured": matmul_rate(cell.dtype)}
    for name, one in figures["contenders"].items():
        rate = figures["flops"] / one["seconds"]["median"]
        found[name] = {
            "of_data_sheet": rate / sheet if sheet else None,
            "of_measured": rate / found["measured"],
            "all_tokens_per_second": figures["tokens_with_prompts_once"] / one["seconds"]["median"],
        }
    return found


def show(figures: dict[str, Any]) -> None:
    for name, one in figures["contenders"].items():
        seconds, line = one["seconds"], f"  {name:9s} {one['tokens_per_second']:9.1f} tokens/s"
        line += f"   {seconds['median']:8.3f} s a step ({seconds['least']:.3f}-{seconds['most']:.3f})"
        for clock, words in (("seconds", "times rollbook's"), ("cpu_seconds", "by CPU time")):
            if times := one.get(f"{clock}_over_rollbook"):
                line += f"   {times['median']:.2f} {words} ({times['least']:.2f}-{times['most']:.2f})"
        print(f"{line}   {one['peak_gib']:.2f} GiB")
    for name, one in figures.get("utilization", {}).items():
        print(f"  {name}: {one}")


def _without_places(words: list[str]) -> list[str]:
    """The command line less what only says where things are on this machine."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--before", "--trl-python", "--launcher", "--store", "--out"):
            skip = True
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    main()
