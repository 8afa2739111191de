"""The comparison artifact: one row per trial, their ranking, and every checkpoint and evaluation as a parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from pipeline.algorithms import resolve
from pipeline.compare.choices import Choice
from pipeline.compare.plan import Variant
from pipeline.compare.ranking import figures_of, rank
from pipeline.compare.trials import Trial, Trials
from pipeline.config.run import RunConfig
from pipeline.config.train import GUARDS, WORK_SETTINGS
from pipeline.run.status import seconds_of
from pipeline.store import Artifact, Request, read_table
from schemas import Comparison, ComparisonTiming, Metrics
from schemas.manifest import Parent
from schemas.table import Table

STAGE = "compare/1"
STEP_FIGURES = (
    *("loss", "grad_norm", "entropy", "kl_behavior", "ess", "clip_fraction_positive", "clip_fraction_negative"),
    *("ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99"),
)
"""Columns of the metrics that a trial's row holds as means over its last epoch."""


def record(trials: Trials) -> Artifact:
    """Make the artifact of trials that are all done or failed, or find it."""
    with trials.plan.snapshot.store.work(comparison_request(trials)) as work:
        if isinstance(work, Artifact):
            return work
        frame = _frame([_row(trials, variant) for variant in trials.plan.variants()], Comparison)
        work.write_table("comparison.parquet", frame, Comparison)
        times = [{**_key(variant), **_seconds(trial)} for variant, trial in trials.done.items()]
        work.write_table("timing.parquet", _frame(times, ComparisonTiming), ComparisonTiming)
        summary = {
            "trials": len(frame),
            "failed": len(trials.failed),
            "before": figures_of(trials.before),
            "algorithms": rank(trials, frame),
        }
        plan = trials.plan
        run, changed = (_settings(config) for config in (plan.snapshot.config, plan.config))
        notes = {"run": plan.config.name, "changed": _changes(run, changed)}
        return work.finish(summary, outside_id=("timing.parquet",), notes=notes)


def comparison_request(trials: Trials) -> Request:
    """What the artifact is made from: the same trials with the same ends are one comparison."""
    plan, snapshot = trials.plan, trials.plan.snapshot
    recipe = {
        "iteration": snapshot.iteration,
        "algorithms": [_recipe(choice, plan.config.plugins) for choice in plan.choices],
        "seeds": list(plan.seeds),
        "curve": plan.curve,
        **({"baseline": plan.baseline} if plan.baseline else {}),
        **_settings(plan.config),
        "failures": [{**_key(variant), "error": why} for variant, why in trials.failed.items()],
    }
    parents = [snapshot.policy.as_parent("policy"), snapshot.rollouts.as_parent("rollouts")]
    parents.append(snapshot.heldout.as_parent("heldout"))
    if trials.before is not None:
        parents.append(trials.before.evaluation.as_parent("evaluation before training"))
    for variant in plan.variants():
        if trial := trials.done.get(variant):
            parents += _parents(variant, trial)
    return Request("comparison", STAGE, recipe, tuple(parents))


def _parents(variant: Variant, trial: Trial) -> list[Parent]:
    name = f"{variant.choice.label} seed {variant.seed} epoch {variant.epochs}"
    return [trial.checkpoint.as_parent(f"checkpoint {name}"), trial.judged.evaluation.as_parent(f"evaluation {name}")]


def _recipe(choice: Choice, plugins: Sequence[str]) -> dict[str, Any]:
    """An algorithm with every cell and setting that decides what it does."""
    algorithm = resolve(choice.name, choice.settings, plugins)
    cells = {**algorithm.shaping_recipe(), **algorithm.recipe()}
    said = {"formula": algorithm.formula, "paper": algorithm.paper}
    return {"label": choice.label, "name": choice.name, "settings": choice.settings, **said, "cells": cells}


def _settings(config: RunConfig) -> dict[str, Any]:
    """What all trials share, less what changes no result."""
    tree = config.model_dump(mode="json", include={"train", "shape", "replay", "evaluate"})
    for artifact in tree["replay"]["artifacts"]:
        del artifact["path"]  # the checkpoints' parents say which they are
    for name in ("algorithm", "algorithm_args", *WORK_SETTINGS, *GUARDS):
        del tree["train"][name]
    return tree


def _changes(run: dict[str, Any], changed: dict[str, Any], path: str = "") -> dict[str, list[Any]]:
    """Settings that differ from the run's: [the run's value, the comparison's]."""
    found: dict[str, list[Any]] = {}
    for name in {**run, **changed}:
        was, now, key = run.get(name), changed.get(name), f"{path}{name}"
        if isinstance(was, dict) and isinstance(now, dict):
            found |= _changes(was, now, f"{key}.")
        elif was != now:
            found[key] = [was, now]
    return found


def _key(variant: Variant) -> dict[str, Any]:
    return {"label": variant.choice.label, "seed": variant.seed, "epoch": variant.epochs}


def _row(trials: Trials, variant: Variant) -> dict[str, Any]:
    row = {**_key(variant), "algorithm": variant.choice.name}
    trial = trials.done.get(variant)
    if trial is None:
        return {**row, "status": "failed", "error": trials.failed[variant]}
    metrics = read_table(trial.checkpoint, Metrics)
    last = metrics.filter(pl.col("epoch") == metrics["epoch"].max())
    answers = trial.judged.answers
    return {
        **row,
        "status": "ok",
        **figures_of(trial.judged),
        "steps": len(metrics),
        **last.select(pl.col(STEP_FIGURES).mean()).row(0, named=True),
        "shaped_id": trial.shaped.id,
        "checkpoint_id": trial.checkpoint.id,
        "sampled_id": answers.sampled.id,
        "greedy_id": answers.greedy.id if answers.greedy else None,
        "evaluation_id": trial.judged.evaluation.id,
    }


def _seconds(trial: Trial) -> dict[str, float | None]:
    answers = trial.judged.answers
    return {
        "shape_seconds": seconds_of(*{part.shaped.id: part.shaped for part in trial.parts}.values()),
        "score_seconds": seconds_of(*(score for part in trial.parts for score in part.scores.values())),
        "train_seconds": seconds_of(trial.checkpoint),
        "generate_seconds": seconds_of(answers.sampled, answers.greedy),
        "evaluate_seconds": seconds_of(trial.judged.evaluation),
    }


def _frame(rows: list[dict[str, Any]], table: type[Table]) -> pl.DataFrame:
    types = {name: column.dtype for name, column in table.columns().items()}
    return pl.DataFrame([{name: row.get(name) for name in types} for row in rows], schema=types)
