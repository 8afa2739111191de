"""Synthetic comparisons: real artifacts on disk, as many trials as wanted, no training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.compare.choices import parse_choices
from pipeline.compare.plan import Plan, Snapshot, Variant
from pipeline.compare.trials import Judged, Trial, Trials
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_request
from pipeline.evaluate.stage import summarize
from pipeline.generate.order import heldout_request
from pipeline.run.parts import Part
from pipeline.run.record import save_run
from pipeline.run.state import Answers, Iteration, Run
from pipeline.shape.order import shape_request
from pipeline.store import Artifact, Request, Store, Work
from pipeline.train.order import train_request
from schemas import Evaluation, Metrics, Timing

PROMPTS, SAMPLES, STEPS = 40, 4, 5
Make = Callable[..., Trials]


class Synthetic:
    """Artifacts of a run and of trials on its rollouts, from seeded numbers."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.store = Store(root / "artifacts")
        self.config = RunConfig.model_validate(
            {
                "name": "synthetic",
                "seed": 7,
                "run_dir": str(root),
                "store": str(root / "artifacts"),
                "model": {"path": "model"},
                "data": {"train": {"path": "train.parquet"}, "heldout": {"path": "heldout.parquet"}},
                "reward": {"components": [{"grader": "exact_match"}]},
                "train": {"epochs": 3},
                "evaluate": {"samples": SAMPLES, "bootstrap": 200},
                **settings,
            }
        )
        self.base = self.bare("checkpoint", "base")
        self.heldout = self.bare("prompts", "heldout")
        sampling = self.config.generate.model_dump(mode="json", include={"temperature", "top_p", "top_k", "min_p", "max_tokens"})
        self.rollouts = self.rollouts_of("train", sampling=sampling)
        self.before = self.judged(self.config, self.base, 0.25, 30)

    def bare(self, kind: Any, name: str, **summary: Any) -> Artifact:
        return self._finish(Request(kind, "test/1", {"name": name}), {}, {"iteration": 0, **summary})

    def rollouts_of(self, name: str, sampling: dict[str, Any] | None = None, **summary: Any) -> Artifact:
        """Rollouts; without `sampling`, as those of an import."""
        recipe = {"name": name, **({"sampling": sampling} if sampling else {})}
        figures = {"iteration": 0, "completions": 128, "tokens": 5120, "reward_mean": 0.25, **summary}
        return self._finish(Request("rollouts", "test/1", recipe), {}, figures)

    def _finish(self, request: Request, tables: dict[str, tuple[pl.DataFrame, Any]], summary: dict[str, Any]) -> Artifact:
        with self.store.work(request) as work:
            if not isinstance(work, Work):
                return work
            for name, (frame, table) in tables.items():
                work.write_table(name, frame, table)
            return work.finish(summary)

    def save_run(self) -> None:
        """run.json, as after `rollbook evaluate`."""
        assert self.before
        answers = Answers(self.before.answers.sampled, self.before.answers.greedy, self.rollouts)
        step = Iteration(0, self.base, answers, self.before.evaluation)
        save_run(Run(self.config, self.bare("prompts", "train"), self.heldout, [step], "shape 0"), self.root)

    def plan(self, algorithms: str, seeds: int = 1, curve: bool = False) -> Plan:
        snapshot = Snapshot(self.root, 0, self.config, (self.base,), self.rollouts, self.heldout)
        first = self.config.seed
        return Plan(snapshot, parse_choices([algorithms]), tuple(range(first, first + seeds)), self.config, curve)

    def trial(self, plan: Plan, variant: Variant, strength: float, **columns: Any) -> Trial:
        """A trial of an algorithm; `strength` is about the gain of pass@1, `columns` replace those of the metrics."""
        config = plan.training(variant)
        share = 0.25 + strength * (1 - math.exp(-variant.epochs))
        shaped = self._finish(shape_request(config, 0, self.rollouts), {}, {})
        parts = (Part(self.rollouts, shaped),)
        draw = random.Random(f"{variant.choice.label} {variant.seed}")
        rows = [{**step_row(step, strength, draw), **columns} for step in range(variant.epochs * STEPS)]
        timing = [{"step": n, "seconds": 0.5, "tokens_per_second": 900.0, "data_seconds": 0.01} for n in range(len(rows))]
        tables = {"metrics.parquet": (frame_of(rows, Metrics), Metrics), "timing.parquet": (frame_of(timing, Timing), Timing)}
        request = train_request(config, 0, self.base, parts)
        checkpoint = self._finish(request, tables, {"iteration": 1})
        return Trial(parts, checkpoint, self.judged(plan.judging(variant), checkpoint, share, 30 + 20 * strength))

    def judged(self, config: RunConfig, policy: Artifact, share: float, tokens: float) -> Judged:
        draw = random.Random(policy.id)
        rows = [
            {
                "prompt_id": f"p{prompt:03d}",
                "mode": mode,
                "sample_index": sample,
                "reward": reward,
                "solved": reward >= 1,
                "completion_tokens": round(tokens + draw.uniform(-5, 5)),
                "status": "ok",
            }
            for prompt in range(PROMPTS)
            for mode, samples in (("sampled", SAMPLES), ("greedy", 1))
            for sample in range(samples)
            for reward in [float(draw.random() < share)]
        ]
        frame = frame_of(rows, Evaluation)
        sampled, greedy = (
            self._finish(heldout_request(config, policy, self.heldout, greedy=mode), {}, {}) for mode in (False, True)
        )
        request = evaluate_request(config, policy, sampled, greedy)
        evaluation = self._finish(request, {"evaluation.parquet": (frame, Evaluation)}, summarize(frame, request.recipe))
        return Judged(Answers(sampled, greedy, None), evaluation)


def step_row(step: int, strength: float, draw: random.Random) -> dict[str, Any]:
    spread = 0.01 + 0.01 * step * (0.3 + abs(strength))
    noise = 1 + 0.1 * draw.random()
    return {
        "step": step,
        "epoch": step // STEPS,
        "groups": 4,
        "completions": 16,
        "computed": 12,
        "left_out": 4,
        "tokens": 450,
        "loss": -strength * step / 10 * noise,
        "grad_norm": 0.4 * noise + abs(strength),
        "learning_rate": 1e-6,
        "reward_mean": 0.25,
        "advantage_mean": 0.0,
        "completion_tokens_mean": 25.0,
        "age_mean": 0.0,
        "age_max": 0,
        "entropy": 2.0 - strength * step / 5 * noise,
        "kl_behavior": spread**2 * noise,
        "ratio_q01": 1 - 3 * spread if spread < 0.3 else 0.1,
        "ratio_q10": 1 - spread,
        "ratio_q50": 1.0,
        "ratio_q90": 1 + spread,
        "ratio_q99": 1 + 4 * spread * noise,
        "ratio_max": 2.0,
        "clip_fraction_positive": spread / 4 * noise,
        "clip_fraction_negative": spread / 6 * noise,
        "ess": max(1 - 2 * spread * noise, 0.05),
    }


def frame_of(rows: list[dict[str, Any]], table: Any) -> pl.DataFrame:
    types = {name: column.dtype for name, column in table.columns().items()}
    return pl.DataFrame([{name: row.get(name) for name in types} for row in rows], schema=types)


@pytest.fixture(scope="session")
def make_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Synthetic]:
    """make_synthetic(evaluate={...}): a run in a directory of its own, with its rollouts and nothing trained."""
    return lambda **settings: Synthetic(tmp_path_factory.mktemp("run"), **settings)


@pytest.fixture(scope="session")
def make_trials(make_synthetic: Callable[..., Synthetic]) -> Make:
    """make_trials("grpo,reinforce", seeds=2, failing={"grpo": "why"}, strengths={"reinforce": 0.3}): trials that ended."""

    def make(
        algorithms: str,
        seeds: int = 1,
        curve: bool = False,
        failing: dict[str, str] | None = None,
        strengths: dict[str, float] | None = None,
        before: bool = True,
        columns: dict[str, dict[str, Any]] | None = None,
        **settings: Any,
    ) -> Trials:
        synthetic = make_synthetic(**settings)
        trials = Trials(synthetic.plan(algorithms, seeds, curve), synthetic.before if before else None)
        labels = [choice.label for choice in trials.plan.choices]
        for variant in trials.plan.variants():
            label = variant.choice.label
            if why := (failing or {}).get(label):
                trials.failed[variant] = why
                continue
            strength = (strengths or {}).get(label, 0.05 * (1 + labels.index(label)))
            trials.done[variant] = synthetic.trial(trials.plan, variant, strength, **(columns or {}).get(label, {}))
        return trials

    return make
