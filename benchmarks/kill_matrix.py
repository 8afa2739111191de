"""Kill a small real run at seeded random moments of every stage, restart it, and compare what it makes with an unbroken run.

    python benchmarks/kill_matrix.py --kills 100 --out benchmarks/results/kill_matrix.json

A round is one run in a store of its own: in each stage it is killed several times, and started again by the same command
until it ends. Rounds follow until there were enough kills; those in --out are kept, so the command can be stopped and goes
on. Killed is, by lot, the whole tree of processes, the command alone (its children must see to their own end), or the
process of the stage (the command must try again by itself).

With --direct the added rounds run the chain of stages without Prefect around it, at a third of the cost.

    python benchmarks/kill_matrix.py --recipe remix --kills 20 --direct

takes a recipe of configs/recipes, all iterations of it at a small size. A round of it has that many kills at moments anywhere in
the run. Kept in benchmarks/results/kill_matrix_RECIPE.json.

    python benchmarks/kill_matrix.py --recipe tools --kills 30 --a-round 10 --engines 1 4 --direct

takes configs/tools.yaml, whose completions are episodes, ten kills a round, by one engine and by four in turn. The unbroken run
has one.

After every round the ids of all artifacts must be those of the unbroken run, each prompt answered as often as was asked.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from pipeline.store import Store

ROLLBOOK = Path(sys.executable).with_name("rollbook")
ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, Any] = {
    "name": "killed",
    "seed": 3,
    "iterations": 2,
    "model": {"path": str(ROOT / "data/base")},
    "data": {
        "train": {"path": str(ROOT / "data/arithmetic/train.parquet"), "prompt_id": "prompt_id", "limit": 64},
        "heldout": {"path": str(ROOT / "data/arithmetic/heldout.parquet"), "prompt_id": "prompt_id", "limit": 8},
        "template": "Q:{question}=",
    },
    "engine": {"max_num_seqs": 4, "kv_cache_mib": 32},
    "generate": {"prompts": 8, "samples": 4, "temperature": 0.7, "max_tokens": 24, "shard_groups": 1},
    "reward": {"components": [{"grader": "regex", "args": {"pattern": "A:(-?[0-9]+)$"}}]},
    "replay": {"iterations": 1, "share": 0.3},
    "train": {"algorithm": "a*-po", "epochs": 2, "batch_completions": 4, "save_every_steps": 1},
    "evaluate": {"samples": 2, "bootstrap": 1000},
}
"""8 prompts x 4 samples in shards of one prompt; a reference policy, so that there is scoring; replay in the second round."""
STAGES = [
    "import", "prompts", "generate-0", "evaluate-0", "shape-0", "score-0", "train-0", "generate-1", "evaluate-1", "shape-1",
    "replay-1", "score-1", "train-1", "generate-2", "evaluate-2",
]  # fmt: skip
RECIPE: dict[str, Any] = {
    "data": {"train": {"limit": 64}, "heldout": {"limit": 8}},
    "engine": {"max_num_seqs": 4, "kv_cache_mib": 32},
    "generate": {"prompts": 8, "samples": 4, "max_tokens": 24, "shard_groups": 1},
    "train": {"batch_completions": 4, "save_every_steps": 1},
    "evaluate": {"samples": 2, "k": [1]},
    "stop": {"no_signal": None},
}
"""What a recipe is made small by."""
KINDS = ("tree", "command", "stage")
KILLS_PER_STAGE = 2
ROUND = "round.json"
"""File of a round that is not over."""
MODULES = {"replay": "pipeline.shape.mix"}


@dataclass
class Round:
    """One run that was killed again and again."""

    seed: int
    direct: bool = False
    """Without Prefect."""
    engines: int = 1
    """`engine.replicas` of this round; the unbroken run has one."""
    moments: int = 0
    """How many of the round's moments have passed."""
    kills: list[dict[str, Any]] = field(default_factory=list)
    """{stage, kind, after: seconds since the stage began}."""
    starts: int = 0
    artifacts: int = 0
    differing: list[str] = field(default_factory=list)
    """Artifacts whose id is another than in the unbroken run, or that are missing or too many."""
    repeated: int = 0
    """Completions that are there twice."""
    missing: int = 0
    """Completions that are not there."""
    leftovers: list[str] = field(default_factory=list)
    """Temporary files and resume points."""
    orphans: list[str] = field(default_factory=list)
    """Processes that outlived the command that was killed."""

    @property
    def sound(self) -> bool:
        return not (self.differing or self.repeated or self.missing or self.leftovers or self.orphans)


class Command:
    """`rollbook run`, with a mark in the environment by which every process below it is known."""

    def __init__(self, config: Path, run: Path, *, direct: bool = False, engines: int = 1) -> None:
        self._mark = tempfile.mkdtemp(prefix="rollbook-")
        atexit.register(self.end)
        self._log = run.parent / "command.log"
        several = [f"engine.replicas={engines}"] if engines > 1 else []
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--chain", str(config), f"run_dir={run}", *several]
                if direct
                else [str(ROLLBOOK), "run", str(config), "--set", f"run_dir={run}", *several],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "TMPDIR": self._mark},
            )

    def processes(self) -> dict[int, str]:
        """Command lines of everything below, by process id."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if f"TMPDIR={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return found

    def kill(self, kind: str, stage: str) -> str:
        """SIGKILL. Returns the kind: where the stage has no process of its own, it is the whole tree."""
        name = stage.partition("-")[0]
        module = MODULES.get(name, f"pipeline.{name}")
        children = [pid for pid, line in self.processes().items() if f"-m {module}" in line]
        if kind == "stage" and children:
            _kill(min(children))
            return kind
        if kind == "command":
            self.process.kill()
        else:
            kind = "tree"
            for pid in self.processes():
                _kill(pid)
        self.process.wait()
        return kind

    def end(self) -> None:
        """Leave nothing running when the matrix itself is stopped."""
        for pid in self.processes():
            _kill(pid)
        shutil.rmtree(self._mark, ignore_errors=True)

    def orphans(self, seconds: float = 30.0) -> list[str]:
        """What still runs when the command is gone and that time has passed."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.end()
        atexit.unregister(self.end)
        return list(found.values())

    def __str__(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def settings_of(recipe: str) -> dict[str, Any]:
    """A recipe's settings, small. One of configs/ itself, such as tools, keeps its own model and data."""
    own = ROOT / "configs" / f"{recipe}.yaml"
    path = own if own.exists() else ROOT / "configs" / "recipes" / f"{recipe}.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path == own:
        found["model"]["path"] = str(ROOT / found["model"]["path"])
    else:
        found["model"]["path"] = SETTINGS["model"]["path"]
    for name in ("train", "heldout"):
        told = found["data"][name]
        told["path"] = str(ROOT / told["path"]) if path == own else SETTINGS["data"][name]["path"]
    return _merged(found, RECIPE)


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    inner = {name: _merged(settings.get(name) or {}, value) for name, value in changes.items() if isinstance(value, dict)}
    return {**settings, **changes, **inner}


def stages_of(settings: dict[str, Any]) -> list[str]:
    """Every stage that a run of these settings may have, in their order."""
    each = ("generate", "evaluate", "shape", "replay", "score", "train")
    last = settings["iterations"]
    return ["import", "prompts", *(f"{name}-{number}" for number in range(last) for name in each)] + [
        f"{name}-{last}" for name in each[:2]
    ]


class Watch:
    """Which stage a run is in: the one that began last. A stage begins when its log, or its lock, is touched."""

    def __init__(self, run: Path, stages: list[str]) -> None:
        self._run, self._stages = run, stages
        self._before = self._touched()

    def _touched(self) -> dict[str, int]:
        found = {}
        for log in (self._run / "logs").glob("*.log"):
            with suppress(FileNotFoundError):
                found[log.stem] = log.stat().st_mtime_ns
        for name, kind in (("import", "checkpoint"), ("prompts", "prompts")):
            locks = list((self._run / "artifacts" / "locks").glob(f"{kind}-*.lock"))
            if locks and not any((self._run / "artifacts" / kind).glob("*/manifest.json")):
                found[name] = min(lock.stat().st_mtime_ns for lock in locks)
        return found

    def begun(self) -> str | None:
        """The stage that began last since this watch began; None if none did."""
        now = {name: time for name, time in self._touched().items() if name in self._stages and time != self._before.get(name)}
        return max(now, key=self._stages.index, default=None)


def unbroken(config: Path, run: Path, stages: list[str], *, direct: bool) -> dict[str, float]:
    """Do the run without a kill. Returns how long each stage took, seconds."""
    command, watch, began = Command(config, run, direct=direct), Watch(run, stages), {}
    while command.process.poll() is None:
        if (stage := watch.begun()) is not None:
            began.setdefault(stage, time.monotonic())
        time.sleep(0.02)
    if command.process.returncode:
        raise SystemExit(f"the unbroken run failed:\n{command}")
    times = [*began.values(), time.monotonic()]
    return {stage: times[i + 1] - times[i] for i, stage in enumerate(began)}


def moments_of(seed: int, stages: list[str], wanted: int, *, anywhere: bool) -> list[tuple[str, float, str]]:
    """Stage, share of its length, and kind of each kill of a round, in the order of stages.

    Args:
        anywhere: draw stages by lot; else every stage is killed as often.
    """
    lot = random.Random(seed)
    if anywhere:
        drawn = sorted(lot.choices(range(len(stages)), k=wanted))
        return [(stages[number], lot.random(), lot.choice(KINDS)) for number in drawn]
    return [(stage, lot.random(), lot.choice(KINDS)) for stage in stages for _ in range(KILLS_PER_STAGE)][:wanted]


def killed(done: Round, config: Path, place: Path, lengths: dict[str, float], stages: list[str], wanted: int) -> None:
    """One round, or the rest of one: at most `wanted` kills, then to the end. After each kill it is written down.

    Args:
        stages: all of the run, in their order.
    """
    run = place / "run"
    there = stages if stages == STAGES else [stage for stage in stages if stage in lengths]
    moments = moments_of(done.seed, there, wanted, anywhere=stages != STAGES)
    command: Command | None = None
    for number, (stage, share, kind) in enumerate(moments):
        if number < done.moments:
            continue
        done.moments = number + 1
        if command is None or command.process.poll() is not None:
            command, watch = Command(config, run, direct=done.direct, engines=done.engines), Watch(run, stages)
            done.starts += 1
        at = _until(stage, command, watch, stages)
        if at is None:
            break  # the run is over
        began = time.monotonic()
        if at == stage:
            _sleep(share * lengths.get(stage, 1.0), command)
        at = watch.begun() or at
        if command.process.poll() is not None:
            if command.process.returncode == 0:
                break
            continue  # a stage that was killed twice: the command gave up, and is started again
        kind = command.kill(kind, at)
        done.kills.append({"stage": at, "kind": kind, "after": round(time.monotonic() - began, 3)})
        watch = Watch(run, stages)
        if kind != "stage":
            done.orphans += command.orphans()
        (place / ROUND).write_text(json.dumps(asdict(done)), encoding="utf-8")
        print(f"  {len(done.kills)}. {at}: {kind}, after {done.kills[-1]['after']} s", flush=True)
    while command is None or command.process.poll() != 0:
        if done.starts > len(moments) + 3:
            raise SystemExit(f"the run does not come to its end:\n{command}")
        if command is None or command.process.poll() is not None:
            command = Command(config, run, direct=done.direct, engines=done.engines)
            done.starts += 1
        command.process.wait()
    done.orphans += command.orphans()


def _until(stage: str, command: Command, watch: Watch, stages: list[str]) -> str | None:
    """Wait until a stage, or a later one, begins. Returns that; None if the command ended."""
    while command.process.poll() is None:
        at = watch.begun()
        if at is not None and stages.index(at) >= stages.index(stage):
            return at
        time.sleep(0.005)
    return stage if command.process.returncode else None


def _sleep(seconds: float, command: Command) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and command.process.poll() is None:
        time.sleep(0.005)


def compare(done: Round, run: Path, model: Path) -> None:
    """Write down how a run differs from the unbroken one."""
    ids, expected = _ids(run), _ids(model)
    done.artifacts = len(expected)
    done.differing = sorted(name for name in ids.keys() | expected.keys() if ids.get(name) != expected.get(name))
    for name, rows in _completions(model).items():
        there = _completions(run).get(name, [])
        done.repeated += len(there) - len(set(there))
        done.missing += len(set(rows) - set(there))
    found = [*run.rglob(".tmp-*"), *run.rglob(".resume"), *run.rglob(".building-*")]
    done.leftovers = [str(path.relative_to(run)) for path in found]


def _ids(run: Path) -> dict[str, str]:
    store = Store(run / "artifacts")
    for artifact in store.artifacts():
        artifact.verify()
    return {str(artifact.path.relative_to(store.root)): artifact.id for artifact in store.artifacts()}


def _completions(run: Path) -> dict[str, list[tuple[str, int]]]:
    """(prompt_id, sample_index) of every row of every rollouts artifact."""
    folders = sorted((run / "artifacts" / "rollouts").iterdir())
    frames = {path.name: pl.read_parquet(path / "part-*.parquet", columns=["prompt_id", "sample_index"]) for path in folders}
    return {name: list(frame.iter_rows()) for name, frame in frames.items()}


def chained(config: Path, changes: list[str]) -> None:
    """What `rollbook run` does, without Prefect, and without trying a crashed stage once more."""
    from flows.answers import hands, working
    from flows.chain import chain
    from pipeline.config.load import load_config
    from pipeline.run.record import save_run

    settings = load_config(config, changes)
    with hands() as processes:
        chain(settings, working(settings, processes), lambda so_far: save_run(so_far, settings.directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many there are to be in all")
    parser.add_argument("--rounds", type=int, default=1000, help="how many rounds to add at most, now")
    parser.add_argument("--direct", action="store_true", help="without Prefect")
    parser.add_argument("--a-round", type=int, help="kills of a round of a recipe at most; default all that are left")
    parser.add_argument("--engines", type=int, nargs="+", default=[1], help="engine.replicas of rounds, in turn")
    parser.add_argument("--recipe", help="of configs/recipes; default: settings of this file")
    parser.add_argument("--chain", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--root", type=Path, help="where the runs lie; default runs/kill-matrix")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/kill_matrix.json")
    args = parser.parse_args()
    args.root = args.root or Path("runs") / (f"kill-matrix-{args.recipe}" if args.recipe else "kill-matrix")
    named = f"kill_matrix_{args.recipe}.json" if args.recipe else "kill_matrix.json"
    args.out = args.out or Path("benchmarks/results") / named
    if args.chain:
        chained(Path(args.chain[0]), args.chain[1:])
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = args.root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    config = root / "killed.yaml"
    settings = settings_of(args.recipe) if args.recipe else SETTINGS
    stages = stages_of(settings) if args.recipe else STAGES
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    rounds = [Round(**one) for one in json.loads(args.out.read_text(encoding="utf-8"))["rounds"]] if args.out.exists() else []
    measured = root / "unbroken" / "lengths.json"
    if not measured.exists():
        shutil.rmtree(measured.parent, ignore_errors=True)
        measured.parent.mkdir()
        lengths = unbroken(config, measured.parent / "run", stages, direct=bool(args.recipe and args.direct))
        measured.write_text(json.dumps(lengths), encoding="utf-8")
    lengths = json.loads(measured.read_text(encoding="utf-8"))
    for one in _more(rounds, args, config, root, lengths, stages):
        rounds.append(one)
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "command": _spelled(args),
            **summary(rounds),
            "rounds": [asdict(each) for each in rounds],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary(rounds), indent=2))
    sys.exit(0 if all(one.sound for one in rounds) else 1)


def _more(
    rounds: list[Round], args: argparse.Namespace, config: Path, root: Path, lengths: dict[str, float], stages: list[str]
) -> Iterator[Round]:
    for _ in range(args.rounds):
        left = args.kills - sum(len(one.kills) for one in rounds)
        if left <= 0:
            return
        left = min(left, args.a_round or left)
        seed = args.seed + len(rounds)
        place = root / f"round-{seed}"
        if (place / ROUND).exists():
            one = Round(**json.loads((place / ROUND).read_text(encoding="utf-8")))
        else:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            one = Round(seed, args.direct, args.engines[len(rounds) % len(args.engines)])
        killed(one, config, place, lengths, stages, left)
        compare(one, place / "run", root / "unbroken" / "run")
        print(f"round {seed}: {len(one.kills)} kills, {one.starts} starts, {'sound' if one.sound else asdict(one)}", flush=True)
        if one.sound:
            shutil.rmtree(place)
        yield one


def _spelled(args: argparse.Namespace) -> str:
    """The command that made the record."""
    told = {
        "recipe": args.recipe,
        "kills": args.kills,
        "a-round": args.a_round,
        "engines": None if args.engines == [1] else " ".join(map(str, args.engines)),
    }
    said = [f"--{name} {value}" for name, value in told.items() if value is not None]
    return " ".join(["python benchmarks/kill_matrix.py", *said, *["--direct"] * args.direct])


def summary(rounds: list[Round]) -> dict[str, Any]:
    kills = [kill for one in rounds for kill in one.kills]
    by_stage = Counter(kill["stage"].partition("-")[0] for kill in kills)
    return {
        "kills": len(kills),
        "kills_by_stage": dict(sorted(by_stage.items())),
        "kills_by_kind": dict(sorted(Counter(kill["kind"] for kill in kills).items())),
        "kills_without_prefect": sum(len(one.kills) for one in rounds if one.direct),
        "starts": sum(one.starts for one in rounds),
        "artifacts_compared": sum(one.artifacts for one in rounds),
        "artifacts_that_differ": sum(len(one.differing) for one in rounds),
        "completions_repeated": sum(one.repeated for one in rounds),
        "completions_missing": sum(one.missing for one in rounds),
        "leftover_files": sum(len(one.leftovers) for one in rounds),
        "orphaned_processes": sum(len(one.orphans) for one in rounds),
    }


if __name__ == "__main__":
    main()
