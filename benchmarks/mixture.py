"""What a mixture of two models costs in vLLM: tokens per processor second, beside the policy alone.

    python benchmarks/mixture.py

Engines of one thread, each in a process of its own, in turn; the second model is as large as the first. The demo's base model,
and a random one of 8 layers of width 512 with the same tokens. Processor time, since machines are rarely idle.
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

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "mixture.json"
SHARE = 0.125
PROMPTS, TOKENS = 128, 64
WIDER = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
WIDER |= {"num_hidden_layers": 8, "layer_types": ["full_attention"] * 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(speed(Path(args.child[0]), mixed=args.child[1] == "mixture")))
        return
    with tempfile.TemporaryDirectory() as scratch:
        models = {"demo, 1M": ROOT / "data/base", "8 x 512": wider(Path(scratch) / "wider")}
        found = {name: compared(model, args.rounds) for name, model in models.items()}
    kept = {"command": f"python benchmarks/mixture.py --rounds {args.rounds}", "date": datetime.now(UTC).date().isoformat()}
    kept |= {"machine": f"{os.cpu_count()} cores, {platform.machine()}, other work beside it", "share": SHARE, "models": found}
    args.out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def compared(model: Path, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, and their ratio."""
    seen: dict[str, list[float]] = {"alone": [], "mixture": []}
    for _ in range(rounds):
        for way, speeds in seen.items():
            command = [sys.executable, __file__, "--child", str(model), way]
            ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment()}, capture_output=True, text=True)
            if ended.returncode:
                raise SystemExit(ended.stderr)
            speeds.append(json.loads(ended.stdout.splitlines()[-1]))
    medians = {way: round(statistics.median(speeds)) for way, speeds in seen.items()}
    return {"tokens_per_cpu_second": medians, "ratio": round(medians["mixture"] / medians["alone"], 3), "rounds": rounds}


def environment() -> dict[str, str]:
    from pipeline.generate.engine import engine_environment

    return engine_environment() | {"OMP_NUM_THREADS": "1"}


def speed(model: Path, *, mixed: bool) -> float:
    """Tokens per second of this process's processor time, after a first round that is not counted."""
    from pipeline.config.engine import EngineConfig, SamplingConfig
    from pipeline.generate.engine import CompletionRequest, Engine
    from pipeline.generate.mixture.folder import MixedWith

    other = MixedWith(str(model), SHARE) if mixed else None
    engine = Engine(model, EngineConfig(kv_cache_mib=256, max_num_seqs=64), "float32", trust_remote_code=False, mixed=other)
    sampling, tokens, began = SamplingConfig(max_tokens=TOKENS), 0, 0.0
    for number in range(2):
        tokens, began = 0, time.process_time()
        for prompt in range(PROMPTS):
            engine.add(CompletionRequest((number, prompt, 0), [51, 28, 19 + prompt % 10, 26, 20, 31], sampling, seed=prompt))
        while engine.is_busy:
            tokens += sum(len(reply.token_ids) for reply in engine.step())
    return tokens / (time.process_time() - began)


def wider(directory: Path) -> Path:
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**json.loads((ROOT / "data/base/config.json").read_text()), **WIDER})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "data/base" / name, directory)
    return directory


if __name__ == "__main__":
    main()
