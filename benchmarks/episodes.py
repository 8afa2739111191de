"""What an environment that takes 2 s a step costs the engine: tokens per second beside an environment that answers at once.

    python benchmarks/episodes.py --rounds 3 --out benchmarks/results/episodes.json

A random model of the demo's vocabulary and about 100M parameters draws turns that end at a digit; after each but the last the
environment says a few characters. 64 episodes are in flight, and three times as many are played, so that an episode that ends
makes room for another. Both environments are played in turns, by one engine that stays, with the same seeds: the tokens must be
the same. Tokens per second are from the first request to the last completion.

While environments think, their episodes ask nothing of the engine. With n in flight, of whose turns the engine draws c a second,
2c of them think: the engine is kept busy as long as n is well above 2c.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.fleet import ENGINE, ROOT, endless
from pipeline.config.run import RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.generate.order import answers_order, rollouts_job, rollouts_request
from pipeline.run.answers import spec_for
from pipeline.run.process import Event
from pipeline.run.processes import Processes
from pipeline.sources import models
from pipeline.sources.order import import_request
from pipeline.store import Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Prompts

IN_FLIGHT = 64
SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 14,
    "num_attention_heads": 12,
    "layer_types": ["full_attention"] * 14,
}
"""About 100M parameters: two cores take some tenths of a second for a token of each of 64 episodes."""


class Waits:
    """Takes its time, and says a few characters."""

    def __init__(self, seconds: float, turns: int) -> None:
        self._seconds, self._left = seconds, turns

    def start(self, prompt: Mapping[str, Any], seed: int) -> None: ...

    def step(self, action: str) -> tuple[str, None, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        self._left -= 1
        return " and", None, self._left == 0, {}


def random_model(to: Path) -> Path:
    """As large as it takes for two cores to be busy with."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    endless(to)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(to, **SHAPE, num_key_value_heads=12)
    AutoModelForCausalLM.from_config(config).save_pretrained(to)
    return to


class Player:
    """The generate stage in its process."""

    def __init__(self, root: Path, turns: int) -> None:
        self._root, self._store, self._turns = root, Store(root / "store"), turns
        files = models.model_files(random_model(root / "model"))
        self._policy = models.import_model(self._store, import_request({"all": "1"}), files, "here", None)
        self._processes = Processes(engine_environment())
        rows = pl.read_parquet(ROOT / "data/arithmetic/train.parquet").head(IN_FLIGHT * 3)
        text = pl.format("Q:{}=", "question")
        rows = rows.select("prompt_id", "question", "answer", prompt_text=text, metadata=pl.lit(None, pl.String))
        with self._store.work(Request("prompts", "prompts/1", {"chat": False})) as work:
            assert isinstance(work, Work)
            work.write_table("prompts.parquet", rows, Prompts)
            self._prompts = work.finish({"prompts": len(rows)})

    def play(self, seconds: float, again: int, episodes: int) -> tuple[dict[str, Any], pl.DataFrame]:
        """What one round took, and its rows.

        Args:
            again: number of the round, so that no finished one is found.
        """
        args = {"seconds": seconds, "turns": self._turns}
        config = RunConfig.model_validate(
            {
                "name": "episodes",
                "run_dir": str(self._root / "run"),
                "model": {"path": "unused"},
                "data": {"train": {"path": "unused"}, "heldout": {"path": "unused"}},
                "reward": {"workers": 1, "components": [{"grader": "exact_match"}]},
                "engine": {**ENGINE, "max_num_seqs": IN_FLIGHT, "replicas": 1},
                "environment": {
                    "name": "benchmarks.episodes:Waits",
                    "args": args,
                    "in_flight": IN_FLIGHT,
                    "max_turns": 100 + again,
                },
                "generate": {
                    "prompts": episodes,
                    "samples": 1,
                    "max_tokens": 200,
                    "stop": list("0123456789"),
                    "shard_groups": 16,
                },
            }
        )
        request = rollouts_request(config, 0, self._policy, self._prompts)
        order = answers_order(config, "generate", self._policy, rollouts_job(request, self._prompts))
        told: list[Event] = []
        spec = spec_for(self._store, order, order.jobs)
        result = self._processes.run(order.module, spec, self._root / "log", told.append)
        last = [event for event in told if event["event"] == "progress"][-1]
        artifact = load_artifact(result["artifacts"][0])
        rows = pl.concat([pl.read_parquet(path) for path in sorted(artifact.path.glob("part-*.parquet"))])
        figures = artifact.summary["episodes"]
        return {
            "seconds_a_step": seconds,
            "tokens_per_second": last["tokens_per_second"],
            "episodes": episodes,
            "turns": figures["turns"],
            "drawn_tokens": figures["drawn_tokens"],
            "load": round(os.getloadavg()[0], 1),
        }, rows.select("prompt_id", "seed", "completion_token_ids").sort("prompt_id")

    def end(self) -> None:
        self._processes.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a step of the slow environment")
    parser.add_argument("--turns", type=int, default=3, help="of an episode")
    parser.add_argument("--episodes", type=int, default=IN_FLIGHT * 3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/episodes.json"))
    args = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as place:
        player = Player(Path(place), args.turns)
        try:
            player.play(0.0, 0, 16)  # to warm up
            for again in range(1, args.rounds + 1):
                order = [0.0, args.seconds] if again % 2 else [args.seconds, 0.0]
                played = {seconds: player.play(seconds, again, args.episodes) for seconds in order}
                assert played[0.0][1].equals(played[args.seconds][1]), "other tokens with a slow environment"
                pairs.append([played[0.0][0], played[args.seconds][0]])
                print(json.dumps(pairs[-1]), flush=True)
        finally:
            player.end()
    ratios = [slow["tokens_per_second"] / fast["tokens_per_second"] for fast, slow in pairs]
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python " + " ".join(sys.argv),
        "in_flight": IN_FLIGHT,
        "speed_beside_at_once": {"each": ratios, "median": statistics.median(ratios)},
        "rounds": pairs,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{statistics.median(ratios):.3f} of the tokens per second: {', '.join(f'{one:.3f}' for one in ratios)}")


if __name__ == "__main__":
    main()
