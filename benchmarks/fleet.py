"""What rollbook adds to vLLM: generation with texts, grades and shards on the disk, beside bare `LLM.generate`.

    python benchmarks/fleet.py --rounds 2 --work 24000 --out benchmarks/results/fleet.json
    python benchmarks/fleet.py --engines     # and two engines with a core each beside one: takes two idle cores

The demo's model with an end token that it never draws, so that all completions have one length. Bare and rollbook answer the
same prompts from the same seeds with the same settings, one thread each, in turns, each with its engine started and warm;
their tokens must be the same. Bare is one call of `LLM.generate` with all requests and no texts. Rollbook is its stage as a
run has it: requests and completions between two processes, texts, grades by `exact_match`, Parquet, fsync, the manifest.

The machine is shared, so two kinds of figures are told. CPU: seconds that bare's process and rollbook's engine process spend,
which is what a device would wait for; what the stage's process and its graders spend beside that is told too. Wall: tokens
per second from the first request to the last completion, and with all that comes before and after (reading prompts, starting
graders, the last shard, the manifest).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.run import RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.generate.order import answers_order, rollouts_job, rollouts_request
from pipeline.run.answers import spec_for
from pipeline.run.process import Event
from pipeline.run.processes import Processes
from pipeline.sources import models
from pipeline.sources.order import import_request
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Prompts

ROOT = Path(__file__).resolve().parents[1]
NEVER = ("<unk>", 2)
"""A token that the model does not draw."""
SAMPLES = 8
ENGINE = {"max_num_seqs": 128, "kv_cache_mib": 256, "max_model_len": 2048}
BARE = """
import json, os, sys, time
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
from vllm import LLM, SamplingParams

llm = LLM(**json.loads(sys.stdin.readline()))
for line in sys.stdin:
    work = json.loads(line)
    began, cpu = time.monotonic(), time.process_time()
    fixed = dict(max_tokens=work["tokens"], logprobs=0, flat_logprobs=True, detokenize=False)
    params = [SamplingParams(seed=seed, **fixed) for seed in work["seeds"]]
    replies = llm.generate([{"prompt_token_ids": prompt} for prompt in work["prompts"]], params, use_tqdm=False)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    llm.reset_prefix_cache()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "ids": [list(r.outputs[0].token_ids) for r in replies]}), file=out)
"""


def endless(to: Path) -> Path:
    """The demo's model with room for long completions, and an end that it never draws."""
    to.mkdir()
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"max_position_embeddings": 2048, "eos_token_id": NEVER[1]},
        "generation_config.json": {"eos_token_id": NEVER[1]},
        "tokenizer_config.json": {"eos_token": NEVER[0], "model_max_length": 2048},
    }
    for path in (ROOT / "data/base").glob("*.*"):
        data = path.read_bytes()
        if path.name in changes:
            data = json.dumps(json.loads(data) | changes[path.name]).encode()
        (to / path.name).write_bytes(data)
    return to


class Bare:
    """`LLM.generate` in a process of its own."""

    def __init__(self, model: Path, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BARE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **environment},
                text=True,
            )
        self._tell(
            {
                "model": str(model),
                "dtype": "float32",
                "seed": 0,
                "max_model_len": ENGINE["max_model_len"],
                "max_num_seqs": ENGINE["max_num_seqs"],
                "kv_cache_memory_bytes": ENGINE["kv_cache_mib"] << 20,
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "logprobs_mode": "processed_logprobs",
            }
        )

    def _tell(self, message: Event) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def run(self, rows: pl.DataFrame, tokens: int) -> Event:
        """Answers what rollbook answered, in the order of its rows."""
        assert self._process.stdout
        self._tell({"tokens": tokens, "prompts": rows["prompt_token_ids"].to_list(), "seeds": rows["seed"].to_list()})
        result: Event = json.loads(self._process.stdout.readline())
        assert result.pop("ids") == rows["completion_token_ids"].to_list(), "other tokens than rollbook's"
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Ours:
    """The generate stage in its process, with some engines."""

    def __init__(self, root: Path, model: Path, replicas: int, environment: dict[str, str]) -> None:
        self._replicas, self._root = replicas, root
        self._store = Store(root / f"store-{replicas}")
        self._policy = models.import_model(self._store, import_request({"all": "1"}), models.model_files(model), "here", None)
        self._processes = Processes(environment)

    def run(self, number: int, tokens: int, completions: int) -> tuple[Artifact, Event]:
        """Rollouts of an iteration that has not been before, and what they took."""
        prompts = completions // SAMPLES
        config = RunConfig.model_validate(
            {
                "name": "fleet",
                "run_dir": str(self._root / "run"),
                "model": {"path": "unused"},
                "data": {"train": {"path": "unused"}, "heldout": {"path": "unused"}},
                "reward": {"workers": 1, "components": [{"grader": "exact_match"}]},
                "engine": {**ENGINE, "replicas": self._replicas},
                "generate": {"prompts": prompts, "samples": SAMPLES, "max_tokens": tokens, "shard_groups": max(prompts // 8, 8)},
            }
        )
        request = rollouts_request(config, number, self._policy, self._prompts(prompts))
        order = answers_order(config, "generate", self._policy, rollouts_job(request, self._prompts(prompts)))
        told: list[Event] = []
        before, began = _spent(), time.monotonic()
        spec = spec_for(self._store, order, order.jobs)
        result = self._processes.run(order.module, spec, self._root / "log", told.append)
        seconds = time.monotonic() - began
        spent = {name: value - before.get(name, 0.0) for name, value in _spent().items()}
        last = [event for event in told if event["event"] == "progress"][-1]
        figures = {"seconds": seconds, "tokens_per_second": last["tokens_per_second"], **spent}
        return load_artifact(result["artifacts"][0]), figures

    def _prompts(self, count: int) -> Artifact:
        rows = pl.read_parquet(ROOT / "data/arithmetic/train.parquet").head(count)
        text = pl.format("Q:{}=", "question")
        rows = rows.select("prompt_id", "question", "answer", prompt_text=text, metadata=pl.lit(None, pl.String))
        with self._store.work(Request("prompts", "prompts/1", {"chat": False, "count": count})) as work:
            if isinstance(work, Work):
                work.write_table("prompts.parquet", rows, Prompts)
                return work.finish({"prompts": count})
            return work

    def end(self) -> None:
        self._processes.close()


def _spent() -> dict[str, float]:
    """CPU seconds so far of this program's engines, stages and graders, by which they are."""
    mine, found = os.getpid(), {"engines": 0.0, "stage": 0.0}
    parents, lines, ticks = {}, {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            lines[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(path.name)] = int(fields[1])
        ticks[int(path.name)] = sum(map(int, fields[11:15]))  # with children that ended: graders
    for pid, line in lines.items():
        above = pid
        while above in parents and above != mine:
            above = parents[above]
        if above == mine and "-m pipeline.generate" in line:
            found["engines" if "pipeline.generate.engines" in line else "stage"] += ticks[pid] / os.sysconf("SC_CLK_TCK")
    return found


def compare(args: argparse.Namespace, root: Path) -> list[Event]:
    """Bare beside rollbook, in turns."""
    model, environment = endless(root / "model"), engine_environment() | {"OMP_NUM_THREADS": "1"}
    ours, bare = Ours(root, model, 1, environment), Bare(model, environment, root / "bare.log")
    rows: list[Event] = []
    try:
        number = 0
        for tokens in args.tokens:
            completions = max(args.work // tokens // SAMPLES, 1) * SAMPLES
            for turn in range(args.rounds + 1):
                number += 1
                artifact, figures = ours.run(number, tokens, completions)
                frame = pl.concat([pl.read_parquet(path) for path in sorted(artifact.path.glob("part-*.parquet"))])
                other = bare.run(frame, tokens)
                if turn:  # the first is to warm both up
                    rows.append({"tokens": tokens, "completions": completions, "rollbook": figures, "bare": other})
                    print(json.dumps(rows[-1]), flush=True)
    finally:
        ours.end()
        bare.end()
    return rows


def replicas(args: argparse.Namespace, root: Path) -> list[Event]:
    """One engine with a core beside two with one each, in turns."""
    model, rows = endless(root / "model-2"), []
    both = {count: Ours(root, model, count, engine_environment() | {"OMP_NUM_THREADS": str(count)}) for count in (1, 2)}
    try:
        for turn in range(args.rounds + 1):
            taken = {count: ours.run(turn, 200, max(args.work // 200 // SAMPLES, 1) * SAMPLES)[1] for count, ours in both.items()}
            if turn:
                rows.append({"tokens": 200, "engines": taken})
                print(json.dumps(rows[-1]), flush=True)
    finally:
        for ours in both.values():
            ours.end()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--work", type=int, default=40_000, help="tokens a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", action="store_true", help="two engines beside one as well: takes two idle cores")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fleet.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = compare(args, Path(place))
        pairs = replicas(args, Path(place)) if args.engines else []
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
        "command": "python " + " ".join(sys.argv),
        "rows": rows,
        "engines": pairs,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("| tokens | CPU of the engine: bare / rollbook | stage and graders beside it | tokens/s, rollbook / bare | with all |")
    print("|---|---|---|---|---|")
    for tokens in args.tokens:
        mine = [row for row in rows if row["tokens"] == tokens]
        total = mine[0]["completions"] * tokens
        cpu = statistics.median(row["bare"]["cpu"] / row["rollbook"]["engines"] for row in mine)
        beside = statistics.median(row["rollbook"]["stage"] / row["rollbook"]["engines"] for row in mine)
        speed = statistics.median(row["rollbook"]["tokens_per_second"] * row["bare"]["seconds"] / total for row in mine)
        whole = statistics.median(row["bare"]["seconds"] / row["rollbook"]["seconds"] for row in mine)
        print(f"| {tokens} | {cpu:.3f} | {beside:.1%} | {speed:.3f} | {whole:.3f} |")


if __name__ == "__main__":
    main()
