"""A synthetic run: real artifacts on disk whose rows fit the schemas, with completions that attack whoever shows them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flows.chain import chain
from pipeline.config.run import RunConfig
from pipeline.run.order import Missing, Order
from pipeline.run.state import Run
from pipeline.sources.order import BASE, HELDOUT_PROMPTS, TRAIN_PROMPTS
from pipeline.store import Artifact, Request, Store
from schemas import Evaluation, Metrics, Prompts, Rollouts, Shaped, Timing
from schemas.manifest import Parent

HOSTILE = (
    "<script>alert(1)</script> 41",
    '</style></div>"><img src=x onerror=alert(2)> 41',
    "\x00\x1b[31mred\x1b[0m \u202etxt.exe\u202c zero\u200bwidth 41",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %} ${x} $\\frac{1}{0}$ ]]> <!-- 3",
    "naïve 数学 🙂🏽 مرحبا 7",
    "long " + "12 + 34 = 46; 46 - 5 = 41. " * 40,
)
SHARDS, GROUPS, SAMPLES, STEPS_PER_EPOCH, EPOCHS = 2, 10, 4, 6, 3


@dataclass
class Synthetic:
    """Answers orders with what the real stages would write, from a seeded generator."""

    store: Store
    config: RunConfig
    missing: str | None = None
    tokenizer: bool = True
    random: random.Random = field(default_factory=lambda: random.Random(0))
    known: dict[str, Artifact] = field(default_factory=dict)
    """Everything that it wrote, by id."""

    def begin(self) -> dict[str, Artifact]:
        """What a run starts from."""
        given = {BASE: self.base(), TRAIN_PROMPTS: self._prompts("train"), HELDOUT_PROMPTS: self._prompts("heldout")}
        return {title: self._know(artifact) for title, artifact in given.items()}

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        if order.title == self.missing:
            raise Missing(order.title)
        number = int(order.title.split()[-1])
        return tuple(self._know(self._made(order.stage, number, job.request)) for job in order.jobs)

    def _know(self, artifact: Artifact) -> Artifact:
        self.known[artifact.id] = artifact
        return artifact

    def _made(self, stage: str, number: int, request: Request) -> Artifact:
        parents = {parent.role: self.known[parent.id] for parent in request.parents}
        match stage:
            case "generate":
                return self._rollouts(number, request.recipe["purpose"], parents["policy"], parents["prompts"])
            case "evaluate":
                return self.evaluate(number, parents["policy"], parents["sampled"], parents["greedy"])
            case "shape":
                return self.shape(parents["rollouts"])
            case _:
                return self.train(number, request.parents)

    def base(self) -> Artifact:
        with self.store.work(Request("checkpoint", "import/1", {"iteration": 0})) as work:
            if self.tokenizer:
                byte_tokenizer().save(str(work.path / "tokenizer.json"))
            (work.path / "config.json").write_text("{}")
            return work.finish({"iteration": 0})

    def _prompts(self, name: str) -> Artifact:
        rows = [
            {"prompt_id": f"{name}-{n}", "question": f"{n}+1", "answer": str(n + 1), "prompt_text": f"{n}+1=", "metadata": None}
            for n in range(SHARDS * GROUPS)
        ]
        with self.store.work(Request("prompts", "prompts/1", {"source": name})) as work:
            work.write_table("prompts.parquet", frame_of(rows, Prompts), Prompts)
            return work.finish({"prompts": len(rows)})

    def _rollouts(self, iteration: int, purpose: str, policy: Artifact, prompts: Artifact) -> Artifact:
        recipe = {"purpose": purpose, "iteration": iteration}
        parents = (policy.as_parent("policy"), prompts.as_parent("prompts"))
        with self.store.work(Request("rollouts", "generate/1", recipe, parents)) as work:
            frames = []
            for shard in range(SHARDS):
                rows = [
                    self._completion(iteration, purpose, policy, group, sample)
                    for group in range(shard * GROUPS, (shard + 1) * GROUPS)
                    for sample in range(1 if purpose == "greedy" else SAMPLES)
                ]
                columns = {name: pl.Float64 for name in rows[0] if name.startswith("reward_")}
                frames.append(frame_of(rows, Rollouts, columns))
                work.write_table(f"part-{shard:05d}.parquet", frames[-1], Rollouts)
            frame = pl.concat(frames)
            return work.finish(
                {
                    "groups": frame["group_id"].n_unique(),
                    "completions": len(frame),
                    "tokens": int(frame["completion_token_ids"].list.len().sum()),
                    "prompt_tokens": int(frame["prompt_token_ids"].list.len().sum()),
                    "reward_mean": frame["reward"].mean(),
                    "statuses": dict(frame.group_by("status").len().sort("status").iter_rows()),
                    "policy_version": iteration,
                }
            )

    def _completion(self, iteration: int, purpose: str, policy: Artifact, group: int, sample: int) -> dict[str, Any]:
        """Sample 0 of the first groups is hostile: the first three with reward 1, the others with reward 0."""
        hostile = sample == 0 and group < len(HOSTILE)
        text = HOSTILE[group] if hostile else f"{group} + 1 = " + "1" * self.random.randint(1, 9 + 4 * iteration)
        reward = self.random.choice([0.0, 0.0, 0.2, 1.0] + [1.0] * iteration) if not hostile else float(group < 3)
        status = "ok" if hostile else self.random.choices(["ok", "truncated", "reward_error"], [30, 4, 1])[0]
        failed = status == "reward_error"
        ids = list(text.encode())
        return {
            "group_id": f"{purpose}-{iteration}-{group}" + ("<i>" if hostile and group == 1 else ""),
            "sample_index": sample,
            "prompt_id": f"{purpose}-{group}",
            "prompt_token_ids": list(f"{group}+1=".encode()),
            "completion_token_ids": ids,
            "behavior_logprobs": [-self.random.expovariate(1.5) for _ in ids],
            "action_mask": [place % 7 > 0 for place in range(len(ids))] if hostile and group == 4 else None,
            "prompt_text": f"{group}+1=<u>",
            "completion_text": text,
            "answer": str(group + 1),
            "finish_reason": "length" if status == "truncated" else "stop",
            "reward": None if failed else reward,
            "reward_exact_match": None if failed else reward,
            **self._learned(iteration, group, failed),
            "policy_id": policy.id,
            "policy_version": iteration,
            "source": "self",
            "seed": group,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "logprobs_mode": "processed_logprobs",
            "engine": "synthetic",
            "status": status,
            "error": "grader gave up" if failed else None,
        }

    def _learned(self, iteration: int, group: int, failed: bool) -> dict[str, float | None]:
        """Scores of a reward model that likes every iteration better, where the run has one, and those of its true grader."""
        if all(component.grader != "reward_model" for component in self.config.reward.components):
            return {}
        true = float(group % 4 <= (1, 3, 0)[min(iteration, 2)])
        return {"reward_reward_model": None if failed else 0.5 * iteration + 0.1 * group, "reward_exact_match": true}

    def evaluate(self, iteration: int, policy: Artifact, sampled: Artifact, greedy: Artifact) -> Artifact:
        share = min(0.25 + 0.15 * iteration, 0.7)
        prompts = SHARDS * GROUPS
        rows = [
            {
                "prompt_id": f"heldout-{prompt:02d}",
                "mode": mode,
                "sample_index": sample,
                "reward": float(sample * prompts + prompt < round(share * prompts * samples)),
                "solved": sample * prompts + prompt < round(share * prompts * samples),
                "completion_tokens": 10 + prompt + 3 * iteration,
                "status": "ok",
            }
            for prompt in range(prompts)
            for mode, samples in (("sampled", SAMPLES), ("greedy", 1))
            for sample in range(samples)
        ]
        parents = (policy.as_parent("policy"), sampled.as_parent("sampled"), greedy.as_parent("greedy"))
        with self.store.work(Request("evaluation", "evaluate/1", {"k": [1, 4]}, parents)) as work:
            work.write_table("evaluation.parquet", frame_of(rows, Evaluation), Evaluation)
            return work.finish(
                {
                    "prompts": prompts,
                    "samples": SAMPLES,
                    "pass_at": {"1": around(share, 0.06), "4": around(share + 0.2, 0.05)},
                    "greedy": around(share + 0.04, 0.09),
                    "reward_mean": share,
                    "completion_tokens_mean": 20.0,
                    "failed": 0,
                }
            )

    def shape(self, rollouts: Artifact) -> Artifact:
        frame = pl.read_parquet(rollouts.tables("rollouts"), columns=["group_id", "sample_index", "reward"])
        advantage = pl.col("reward") - pl.col("reward").mean().over("group_id")
        group = pl.col("group_id").str.extract(r"-(\d+)(<i>)?$").cast(pl.Int32)
        hostile = (pl.col("sample_index") == 0) & (group < len(HOSTILE))
        dropped = pl.col("reward").is_null()
        frame = frame.select(
            "group_id",
            "sample_index",
            advantage=pl.when(hostile).then((pl.col("reward") - 0.5) * 10).otherwise(advantage).fill_null(0),
            weight=pl.lit(1.0),
            keep=~dropped,
            drop_reason=pl.when(dropped).then(pl.lit("reward_error")),
        )
        frame = frame.cast({"advantage": pl.Float32, "weight": pl.Float32})
        with self.store.work(Request("shaped", "shape/1", {}, (rollouts.as_parent("rollouts"),))) as work:
            if isinstance(work, Artifact):
                return work
            work.write_table("shaped.parquet", frame, Shaped)
            lost = len(frame) - int(frame["keep"].sum())
            dropped_counts = {"reward_error": lost, "<script>alert(3)</script> $x$": 2}
            return work.finish(
                {"kept": len(frame) - lost, "dropped": dropped_counts, "groups": 20, "zero_variance_groups": 1, "kept_groups": 20}
            )

    def train(self, iteration: int, parents: tuple[Parent, ...]) -> Artifact:
        steps = STEPS_PER_EPOCH * EPOCHS
        metrics = [self._step(iteration, step) for step in range(steps)]
        if iteration == 0:
            metrics[4]["loss"] = float("nan")
            metrics[5]["grad_norm"] = float("inf")
        timing = [{"step": step, "seconds": 0.5, "tokens_per_second": 900.0, "data_seconds": 0.01} for step in range(steps)]
        with self.store.work(Request("checkpoint", "train/1", {"iteration": iteration + 1}, parents)) as work:
            if self.tokenizer:
                byte_tokenizer().save(str(work.path / "tokenizer.json"))
            work.write_table("metrics.parquet", frame_of(metrics, Metrics), Metrics)
            work.write_table("timing.parquet", frame_of(timing, Timing), Timing)
            summary = {"iteration": iteration + 1, "steps": steps, "epochs": EPOCHS, "tokens": 450 * steps}
            summary |= {"kl_behavior": 0.0125, "entropy": 1.5, "ess": None, "grad_norm": None}
            notes = {
                "packing": {"reuse": 0.745, "padding": 0.0, "passes": 8},
                "memory": {"bytes": 5 << 30, "peak": 4_810_000_000},
            }
            return work.finish(summary, outside_id=("timing.parquet",), notes=notes)

    def _step(self, iteration: int, step: int) -> dict[str, Any]:
        noise = self.random.random
        spread = 0.02 + 0.01 * (step % STEPS_PER_EPOCH) + 0.04 * (step // STEPS_PER_EPOCH)
        return {
            "step": step,
            "epoch": step // STEPS_PER_EPOCH,
            "groups": 4,
            "completions": 16,
            "computed": 12,
            "left_out": 4,
            "tokens": 450,
            "loss": -0.02 * step + 0.1 * noise(),
            "grad_norm": 0.4 + noise(),
            "learning_rate": 1e-6,
            "reward_mean": 0.5,
            "advantage_mean": 0.0,
            "completion_tokens_mean": 25.0,
            "age_mean": 0.5 * min(iteration, self.config.replay.iterations),
            "age_max": min(iteration, self.config.replay.iterations),
            "entropy": 2.0 - 0.3 * iteration - 0.01 * step + 0.05 * noise(),
            "kl_behavior": spread**2,
            "ratio_q01": 1 - 3 * spread,
            "ratio_q10": 1 - spread,
            "ratio_q50": 1.0,
            "ratio_q90": 1 + spread,
            "ratio_q99": 1 + 4 * spread,
            "ratio_max": 2.0,
            "clip_fraction_positive": spread / 4,
            "clip_fraction_negative": spread / 6 if step % 5 else None,
            "ess": 1 - 2 * spread,
            "logprob_difference_mean": 0.0004 if step == 0 else None,
            "logprob_difference_max": 0.03 if step == 0 else None,
        }


def byte_tokenizer() -> Tokenizer:
    """One token per byte: token n is byte n."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda char: byte_of(char))
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(characters)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_of(char: str) -> int:
    """The byte that a character of GPT-2's byte alphabet stands for."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return ord(char) if ord(char) < 256 else others[ord(char) - 256]


def frame_of(rows: list[dict[str, Any]], table: Any, extra: dict[str, Any] | None = None) -> pl.DataFrame:
    dtypes = {name: column.dtype for name, column in table.columns().items()}
    return pl.DataFrame(rows, schema={**dtypes, **(extra or {})})


def around(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def make_synthetic_run(
    root: Path, *, iterations: int = 2, missing: str | None = None, tokenizer: bool = True, **settings: Any
) -> Run:
    """A run in `root`, finished, or up to a stage such as 'train 0'."""
    config = RunConfig.model_validate(
        {
            "name": "synthetic",
            "iterations": iterations,
            "store": str(root / "artifacts"),
            "model": {"path": "models/<b>base</b>\u202e"},
            "data": {
                "train": {"path": "train.parquet"},
                "heldout": {"path": "heldout.parquet"},
                "template": "</pre><script>alert(4)</script>{question}",
            },
            "reward": {"components": [{"grader": "exact_match"}]},
            "generate": {"max_tokens": 40},
            **settings,
        }
    )
    if missing in ("base", "prompts"):
        return Run(config, missing=missing)
    synthetic = Synthetic(Store(root / "artifacts"), config, missing, tokenizer)
    return chain(config, synthetic, given=synthetic.begin())


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Makes a run in a directory of its own; see `make_synthetic_run`."""
    return lambda **settings: make_synthetic_run(tmp_path_factory.mktemp("run"), **settings)


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Run]) -> Run:
    """A finished run of two iterations."""
    return make_run()
