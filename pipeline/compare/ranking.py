"""One row per algorithm, its seeds taken together, best first.

Every trial answers the same held-out prompts with the same seeds, so differences are taken prompt by prompt: their intervals
are narrower than those of the two accuracies suggest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.trials import Judged, Trials
from pipeline.evaluate.estimators import bootstrap_interval
from pipeline.store import Artifact, read_table
from schemas import Evaluation

Rates = NDArray[np.float64]
Figures = dict[str, float | None]
MEANS = (
    *("greedy", "reward_mean", "completion_tokens_mean", "steps", "loss", "grad_norm", "entropy", "kl_behavior", "ess"),
    *("clip_fraction_positive", "clip_fraction_negative", "ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99"),
)
"""Columns of a trial that are averaged over seeds."""


def rank(trials: Trials, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Figures of each algorithm after its last epoch, by pass@1; those that failed come last.

    `pass_at_1` is the mean over seeds with a bootstrap interval over prompts, least and greatest are those of single seeds.
    `gain` is against the policy before training, `over_baseline` against the plan's baseline (only where it has one), `behind`
    against the best algorithm.

    Args:
        rows: of the table Comparison.
    """
    plan = trials.plan
    before = solved_rates(trials.before.evaluation) if trials.before else None
    by_label: dict[str, list[Rates]] = {choice.label: [] for choice in plan.choices}
    for variant in plan.variants():
        trial = trials.done.get(variant)
        if trial is not None and variant.epochs == plan.config.train.epochs:
            by_label[variant.choice.label].append(solved_rates(trial.judged.evaluation))
    rates = {label: np.mean(seeds, axis=0) for label, seeds in by_label.items() if seeds}
    best = max(rates.values(), key=lambda rate: float(rate.mean()), default=None)

    baseline = rates.get(plan.baseline or "")

    def interval(name: str, values: Rates | None) -> Figures:
        if values is None:
            return {name: None, f"{name}_low": None, f"{name}_high": None}
        low, high = bootstrap_interval(values, plan.config.evaluate.bootstrap, plan.config.seed)
        return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}

    ranked = []
    for choice in plan.choices:
        rate, seeds = rates.get(choice.label), by_label[choice.label]
        single = [float(seed.mean()) for seed in seeds]
        ranked.append(
            {
                "label": choice.label,
                "algorithm": choice.name,
                "seeds": len(seeds),
                "failed": sum(variant.choice == choice for variant in trials.failed),
                **interval("pass_at_1", rate),
                "pass_at_1_least": min(single, default=None),
                "pass_at_1_greatest": max(single, default=None),
                **interval("gain", None if rate is None or before is None else rate - before),
                **_against(plan.baseline, choice.label, rate, baseline, interval),
                **interval("behind", None if rate is None or best is None or rate is best else best - rate),
                **_means(rows, choice.label, plan.config.train.epochs),
            }
        )
    return sorted(ranked, key=lambda row: -2.0 if row["pass_at_1"] is None else row["pass_at_1"], reverse=True)


def _against(
    label: str | None, own: str, rate: Rates | None, baseline: Rates | None, interval: Callable[[str, Rates | None], Figures]
) -> Figures:
    """An algorithm's lead over the baseline; nothing in a plan without one."""
    if label is None:
        return {}
    return interval("over_baseline", None if own == label or rate is None or baseline is None else rate - baseline)


def _means(rows: pl.DataFrame, label: str, epoch: int) -> dict[str, float | None]:
    last = rows.filter(pl.col("label") == label, pl.col("epoch") == epoch)
    return last.select(pl.col(MEANS).cast(pl.Float64).mean()).row(0, named=True)


def solved_rates(evaluation: Artifact) -> Rates:
    """Share of solved samples of each held-out prompt, by the prompt's id."""
    sampled = read_table(evaluation, Evaluation).filter(pl.col("mode") == "sampled")
    rates = sampled.group_by("prompt_id").agg(rate=pl.col("solved").mean()).sort("prompt_id")
    return rates["rate"].to_numpy()


def figures_of(judged: Judged | None) -> dict[str, Any]:
    """pass@1, greedy accuracy, reward and length of a judged policy; None where they were not measured."""
    summary = judged.evaluation.summary if judged else {}
    first, greedy = (summary.get("pass_at") or {}).get("1") or {}, summary.get("greedy") or {}
    return {
        **{f"pass_at_1{end}": first.get(name) for end, name in _ENDS},
        **{f"greedy{end}": greedy.get(name) for end, name in _ENDS},
        **{name: summary.get(name) for name in ("reward_mean", "completion_tokens_mean")},
    }


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))
