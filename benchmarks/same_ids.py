"""Whether two commits make the same artifacts: the same ids where nothing was meant to change, the same values where it was.

    python benchmarks/same_ids.py                                     # c58570e and the working tree
    python benchmarks/same_ids.py --base HEAD~1 --head HEAD           # two neighboring commits
    python benchmarks/same_ids.py --iterations 1 --set generate.prompts=16 --set data.heldout.limit=16     # a short one

Both sides do five steps in one environment, one machine, and a store each: the demo, a comparison of four algorithms on its first
rollouts, an import that a checkpoint scores, those first rollouts graded again, and a run that replays the graded ones.
Artifacts are paired step by step. Where two ids differ, the table says why: another recipe or stage version (declared: the
fields that differ are printed), other parents alone, or other bytes for the same key. Where ids differ, what the files hold is
compared: rows without the names that contain ids, and weights. Figures that differ by at most 1e-6 agree; so do, in rollouts of a
policy that was trained with other rounding, the same tokens with logprobs within 1e-5.

Exit status 0: every artifact has the same id, or holds the same values after a change that is declared in its recipe or in a
parent's, or was trained with other rounding. 1: something else changed. Finished steps of a commit are kept in --work.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from same_values import Made, Pair, pairs_of, verdict

ROOT = Path(__file__).resolve().parent.parent
ENTRY = [sys.executable, "-P", "-c", "from flows.cli import main; main()"]
COMPLETIONS = 64
"""Of the import: sums of two numbers, four answers each."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="c58570e", help="commit to compare with")
    parser.add_argument("--head", help="the other commit. Default: the working tree")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of the demo and the replay, on both sides")
    parser.add_argument("--algorithms", default="rec-oneside-nois,grpo,topr,dpo", help="of the comparison")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "same-ids", help="trees and stores")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "same_ids.json")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    base = side(args, resolved(args.base))
    head = side(args, resolved(args.head) if args.head else None)
    known: dict[str, Pair] = {}
    pairs = [pair for step in base["steps"] for pair in pairs_of(made(base, step), made(head, step), known)]
    rows = [row(step_of(base, head, pair), pair) for pair in pairs]
    out = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": command(args),
        "base": base["commit"],
        "head": head["commit"],
        "artifacts": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")
    show(rows, base["commit"], head["commit"])
    sys.exit(0 if all(row["fine"] for row in rows) else 1)


def command(args: argparse.Namespace) -> str:
    """The command, without places of this machine."""
    head = f" --head {args.head}" if args.head else ""
    settings = "".join(f" --set {setting}" for setting in args.settings)
    return f"python benchmarks/same_ids.py --base {args.base}{head} --iterations {args.iterations}{settings}"


def resolved(commit: str) -> str:
    """The whole name of a commit."""
    return git("rev-parse", f"{commit}^{{commit}}").decode().strip()


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout


def side(args: argparse.Namespace, commit: str | None) -> dict[str, Any]:
    """What a commit (None: the working tree) makes. Finished steps are read again; the working tree's are made anew."""
    asked = json.dumps([args.iterations, args.settings, args.algorithms])
    name = (commit[:12] if commit else "working-tree") + "-" + hashlib.sha256(asked.encode()).hexdigest()[:8]
    place = args.work.resolve() / name
    record = place / "steps.json"
    if commit is None and place.exists():
        place = place.with_name(f"{name}-{datetime.now(UTC):%H%M%S}")
        record = place / "steps.json"
    place.mkdir(parents=True, exist_ok=True)
    tree = unpacked(commit, place / "tree") if commit else ROOT
    print(f"{name}: {place}", flush=True)
    steps = dict(json.loads(record.read_text(encoding="utf-8"))["steps"]) if record.exists() else {}
    found = {"commit": commit or described(), "store": str(place / "store"), "steps": steps}
    for step, command in commands(args, place, place / "store"):
        if step not in steps:
            steps[step] = added(tree, step, command, place, {path for paths in steps.values() for path in paths})
            record.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def described() -> str:
    return git("rev-parse", "HEAD").decode().strip() + ("+" if git("status", "--porcelain") else "")


def unpacked(commit: str, tree: Path) -> Path:
    """The files of a commit in a directory of their own."""
    if not tree.exists():
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
            archive.extractall(tree, filter="data")
    return tree


def added(tree: Path, step: str, command: list[str], place: Path, known: set[str]) -> list[str]:
    """Do a step. Returns the paths of the artifacts that it added to those that are known, oldest first."""
    rollbook(tree, command, place / f"{step}.log")
    new = [path for path in (place / "store").glob("*/*/manifest.json") if str(path.parent) not in known]
    new.sort(key=lambda path: json.loads(path.read_text(encoding="utf-8"))["provenance"]["created"])
    print(f"  {step}: {len(new)} artifacts", flush=True)
    return [str(path.parent) for path in new]


def commands(args: argparse.Namespace, place: Path, store: Path) -> Iterator[tuple[str, list[str]]]:
    """The steps in order, each made once those before it are done."""
    changes = [part for change in args.settings for part in ("--set", change)]
    demo = ["run", "configs/demo.yaml", "--set", f"store={store}", *changes]
    yield "demo", [*demo, "--set", f"run_dir={place / 'demo'}", "--set", f"iterations={args.iterations}"]
    yield "comparison", ["compare", str(place / "demo"), "--iteration", "0", "--algorithms", args.algorithms, "--no-baseline"]
    answers = place / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in completions()), encoding="utf-8")
    columns = ["--map", "prompt=q", "--map", "completion=out", "--map", "reward=score"]
    model = ["--model", "data/base", "--logprobs-from", "data/base"]
    yield "import", ["import", str(answers), "--format", "plain", *columns, *model, "--temperature", "1", "--store", str(store)]
    pattern = '{pattern: "A:(-?[0-9])"}'  # not the demo's: the first digit alone
    yield "grade", ["grade", str(rollouts(store, "generate")), "--grader", "regex", "--args", pattern]
    graded = rollouts(store, "grade")
    replayed = f'replay={{artifacts: [{{path: "{graded}"}}], loss_weight: 0.5}}'  # no share: draws go by names with ids
    yield "replay", [*demo, "--set", f"run_dir={place / 'replay'}", "--set", "iterations=1", "--set", replayed]


def completions() -> Iterator[dict[str, Any]]:
    for number in range(COMPLETIONS):
        a, b, off = 3 + number // 4, 5 + number // 8, number % 4
        yield {"q": f"Q:{a}+{b}=", "out": f"A:{a + b + off}", "score": float(off == 0)}


def rollouts(store: Path, stage: str) -> Path:
    """The training rollouts of iteration 0, as a stage made them."""
    for path in sorted(store.glob("rollouts/*/manifest.json")):
        content = json.loads(path.read_text(encoding="utf-8"))["content"]
        selection = content["recipe"].get("selection") or {}
        if content["stage"].startswith(f"{stage}/") and (stage == "grade" or selection.get("iteration") == 0):
            return path.parent
    sys.exit(f"{store}: no training rollouts of iteration 0 by {stage}")


def rollbook(tree: Path, command: list[str], log: Path) -> None:
    """Run a command of a tree's rollbook, in that tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run([*ENTRY, *command], cwd=tree, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"rollbook {' '.join(command)} in {tree} ended with {done.returncode}; see {log}")


def made(found: dict[str, Any], step: str) -> list[Made]:
    return [Made.at(Path(path)) for path in found["steps"].get(step, [])]


def step_of(base: dict[str, Any], head: dict[str, Any], pair: Pair) -> str:
    paths = {str(one.path) for one in (pair.base, pair.head) if one}
    steps = [*base["steps"].items(), *head["steps"].items()]
    return next(str(step) for step, there in steps if paths & set(there))


def row(step: str, pair: Pair) -> dict[str, Any]:
    one = pair.base or pair.head
    assert one is not None
    ids = {"base": pair.base and pair.base.id, "head": pair.head and pair.head.id}
    return {"step": step, "kind": one.kind, "stage": one.stage, **ids, **verdict(pair)}


def show(rows: list[dict[str, Any]], base: str, head: str) -> None:
    print(f"\n{base[:12]} and {head[:12]}{head[40:]}\n\n| step | artifact | made by | id | values | |\n|---|---|---|---|---|---|")
    for one in rows:
        print(
            f"| {one['step']} | {one['kind']} | {one['stage']} | {one['why']} | {one['values']} | {'' if one['fine'] else '**'} |"
        )
    same, odd = sum(one["why"] == "same" for one in rows), sum(not one["fine"] for one in rows)
    print(f"\n{same} of {len(rows)} artifacts have the same id; {odd} differ without a declared reason.")


if __name__ == "__main__":
    main()
